"""The causal stage: one anchor under interventions beside controls, its dose response, and its layer profile."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...artifacts import Stage, nan_to_none
from ...behaviour.answers import AnswerRow
from ...behaviour.outcomes import judged_prompts
from ...causal.conditions import (
    Condition,
    ablation_conditions,
    addition_conditions,
    control_conditions,
    localisation_conditions,
    random_bases,
)
from ...causal.localise import layer_profile
from ...causal.readouts import generate_under, refusal_scores, teacher_forced
from ...causal.table import (
    SuiteOutcomes,
    forced_rows,
    generated_coupling_rows,
    outcome_rows,
    suite_outcomes,
)
from ...data.prompts import Prompt
from ...models.layout import num_layers
from ...models.load import LoadedModel
from ..carrier import Carrier, contrast_direction, find_carrier, site_activations, unit_row
from ..context import Context
from ..plan import StagePlan
from ..series import AnchorRef, anchors_of, series_of
from .bank import scored_layers

Row = dict[str, Any]
TILTS: Mapping[str, float] = {"isotropic": 0.0, "covariance": 1.0}
CONTRAST = "question − instruction"
STEP_0 = "step-0 carrier"


def read_answers(context: Context, ref: AnchorRef) -> list[AnswerRow]:
    """The judged answers of an anchor."""
    stored = context.anchor_stage("answers", ref).read_json("answers.json")
    return [AnswerRow.from_json(row) for row in stored]


def _compliance(context: Context, ref: AnchorRef) -> float:
    rows = [row for row in read_answers(context, ref) if (row.suite, row.attack) == ("harmbench", "direct")]
    return sum(row.answered for row in rows) / max(len(rows), 1)


def key_anchors(context: Context, seed: int) -> set[AnchorRef]:
    """Step 0, the most closed anchor (least direct compliance) and the last anchor of each arm."""
    anchors = anchors_of(context.config, seed)
    closed = min(anchors[1:], key=lambda ref: (_compliance(context, ref), ref.step, ref.arm))
    return {anchors[0], closed, *(series[-1] for series in series_of(context.config, seed).values())}


@dataclass
class Measured:
    """What is done at one anchor.

    Attributes:
        conditions: all of them, measured teacher-forced. generated: those that also answer.
        controls: rows about the random subspaces: how much of the benign activations each holds.
    """

    conditions: list[Condition] = field(default_factory=lambda: [Condition()])
    generated: list[Condition] = field(default_factory=list)
    controls: list[Row] = field(default_factory=list)

    def add(self, found: Sequence[Condition], draws_generated: int = 0) -> None:
        """Measure conditions; of random draws only the first few answer."""
        self.conditions += found
        self.generated += [each for each in found if each.draw is None or each.draw < draws_generated]


class _Conditions:
    """Collects the conditions of one anchor."""

    def __init__(self, context: Context, ref: AnchorRef, carrier: Carrier, key: bool) -> None:
        self.context, self.ref, self.carrier, self.key = context, ref, carrier, key
        self.config = context.config.causal
        self.benign = site_activations(context, ref, carrier.layer, carrier.position).harmless
        self.generator = torch.Generator().manual_seed(ref.seed)
        self.measured = Measured()

    def at(self, setting: Literal["none", "key", "all"]) -> bool:
        """Whether something that the configuration wants at some anchors is wanted at this one."""
        return setting == "all" or (setting == "key" and self.key)

    def basis(self, rank: int) -> Float[Tensor, "rank d"]:
        """The direction itself at rank 1, the subspace's first rows above."""
        return unit_row(self.carrier.direction) if rank == 1 else self.carrier.basis[:rank]

    def draw(self, rank: int, kind: str) -> Float[Tensor, "draws rank d"]:
        """Random subspaces of a rank, with a row of the `controls` table for each."""
        found = random_bases(
            self.benign,
            self.basis(rank),
            draws=self.config.random_draws,
            generator=self.generator,
            tilt=TILTS.get(kind),
        )
        for number, (energy, tilt) in enumerate(zip(found.energy.tolist(), found.tilt.tolist(), strict=True)):
            row = {"rank": rank, "kind": kind, "draw": number, "energy": energy, "carrier": found.target}
            self.measured.controls.append({**row, "tilt": tilt})
        return found.bases

    def collect(self) -> Measured:
        """The carrier ablated at every rank and added at every α beside controls; other directions; the sweeps."""
        config, carrier, found = self.config, self.carrier, self.measured
        possible = {
            1,
            *range(2, len(carrier.basis) + 1),
        }  # categories may span fewer dimensions than asked for
        ranks = [rank for rank in config.ranks if rank in possible]
        single = None
        for rank in ranks:
            drawn = self.draw(rank, "matched") if self.at(config.controls_at) else None
            single = drawn if rank == 1 else single
            found.add(ablation_conditions(self.basis(rank), drawn), config.generated_controls)
            for kind in config.unmatched_controls if drawn is not None else ():
                found.add(control_conditions(self.draw(rank, kind), f"random {kind}"))
        found.add(addition_conditions(carrier.direction, carrier.layer, config.alphas, single))
        if self.at(config.controls_at):
            self._other_directions()
        if self.at(config.sweeps_at):
            found.conditions += [
                Condition("ablate", "carrier", self.basis(rank))
                for rank in config.sweep_ranks
                if rank in possible and rank not in ranks
            ]
            alphas = [alpha for alpha in config.sweep_alphas if alpha not in config.alphas]
            found.conditions += addition_conditions(carrier.direction, carrier.layer, alphas)
        return found

    def _other_directions(self) -> None:
        """Step 0's carrier, and a contrast that has nothing to do with harm."""
        start = AnchorRef(self.ref.seed, "base", 0)
        if self.ref != start:
            direction = find_carrier(self.context, start).direction
            self._other(direction, STEP_0)
        contrast = contrast_direction(self.context, self.ref, self.carrier.layer, self.carrier.position)
        if contrast is not None:
            self._other(contrast, CONTRAST)

    def _other(self, direction: Float[Tensor, "d"], name: str) -> None:
        """Ablated teacher-forced; answers only where random controls answer too."""
        found = ablation_conditions(unit_row(direction), name=name)
        if self.config.generated_controls:
            self.measured.add(found)
        else:
            self.measured.conditions += found


def causal(context: Context, entry: StagePlan, stage: Stage) -> Mapping[str, Any]:
    """One anchor's causal table: teacher-forced read-outs, and generated ones where the config asks for them."""
    assert entry.anchor is not None
    ref, config, sets = entry.anchor, context.config.causal, context.prompts
    key = ref in key_anchors(context, ref.seed)
    loaded, carrier = context.open(ref), find_carrier(context, ref)
    chosen = _Conditions(context, ref, carrier, key)
    measured = chosen.collect()
    tokens = context.stage("refusal_tokens").read_json("tokens.json")["ids"]
    harmful = [row.user_text for row in judged_prompts(sets.harmbench.prompts)[: config.prompts]]
    examples = context.chat_examples["heldout"][: config.benign_prompts]
    benign = [(row.user, row.answer) for row in examples]
    context.progress.start(
        "teacher-forced read-outs", len(measured.conditions) * (len(harmful) + len(benign))
    )
    forced = teacher_forced(
        loaded,
        context.chat(loaded),
        measured.conditions,
        harmful,
        benign,
        tokens,
        batch_size=context.batch.forward,
        answer_tokens=config.answer_tokens,
        complete=[row.complete for row in examples],
        progress=context.progress,
    )
    context.progress.done()
    rng = np.random.default_rng(ref.seed)
    rows = forced_rows(measured.conditions, forced, rng)
    if key or config.generated_at == "all":
        rows += _generated(context, loaded, [Condition(), *measured.generated], ref, rng)
    rows = _at_its_site(context, ref, rows)
    profile: list[Row] = []
    if chosen.at(config.localise_at):
        profile = _profile(context, loaded, carrier, harmful, tokens, forced.refusal[0], rng)
    stage.write_json("causal.json", [nan_to_none(row) for row in rows])
    stage.write_json("controls.json", [nan_to_none(row) for row in measured.controls])
    stage.write_json("localisation.json", [nan_to_none(row) for row in profile])
    stage.write_tensors(
        "carrier.safetensors",
        {
            "direction": carrier.direction,
            "basis": carrier.basis.contiguous(),
            "layer": torch.tensor(carrier.layer),
        },
    )
    choice = {key: value for key, value in asdict(carrier.choice).items() if key != "profile"}
    stage.write_json(
        "carrier.json",
        nan_to_none({**choice, "used_layer": carrier.layer, "used_position": carrier.position}),
    )
    return {
        "admissible": carrier.admissible,
        "layer": carrier.layer,
        "position": carrier.position,
        "conditions": len(measured.conditions),
        "ranks_available": len(carrier.basis),
    }


def _at_its_site(context: Context, ref: AnchorRef, rows: list[Row]) -> list[Row]:
    """Rows of step 0's carrier name its own site; all others are this anchor's."""
    if not any(row["control"] == STEP_0 for row in rows):
        return rows
    start = find_carrier(context, AnchorRef(ref.seed, "base", 0))
    site = {"layer": start.layer, "position": start.position, "carrier_admissible": start.admissible}
    return [{**row, **site} if row["control"] == STEP_0 else row for row in rows]


def _profile(
    context: Context,
    loaded: LoadedModel,
    carrier: Carrier,
    harmful: Sequence[str],
    tokens: Sequence[int],
    untouched: Float[np.ndarray, "harmful"],
    rng: np.random.Generator,
) -> list[Row]:
    """The carrier ablated at one layer at a time, on the harmful prompts."""
    layers = scored_layers(num_layers(loaded.model), context.config.causal.localise_stride)
    context.progress.start("layer profile", len(layers) * len(harmful))
    scores = refusal_scores(
        loaded,
        context.chat(loaded),
        localisation_conditions(unit_row(carrier.direction), layers),
        harmful,
        tokens,
        batch_size=context.batch.forward,
        progress=context.progress,
    )
    context.progress.done()
    return layer_profile(layers, scores, untouched, rng)


def _generated(
    context: Context,
    loaded: LoadedModel,
    conditions: Sequence[Condition],
    ref: AnchorRef,
    rng: np.random.Generator,
) -> list[Row]:
    """Generated read-outs: refusal of harmful prompts, any-refusal on XSTest, the utility audit, degeneracy."""
    config, sets = context.config, context.prompts
    count = config.causal.prompts
    groups: dict[str, list[Prompt]] = {
        "harmbench": judged_prompts(sets.harmbench.prompts)[:count],
        "xstest_safe": list(sets.xstest_safe.prompts[:count]),
        "xstest_unsafe": list(sets.xstest_unsafe.prompts[:count]),
        "utility": list(sets.utility.prompts[:count]),
    }
    kept = {
        (row.suite, row.prompt_id): row.text
        for row in read_answers(context, ref)
        if row.attack in ("none", "direct")
    }
    prompts = [(suite, row) for suite, rows in groups.items() for row in rows]
    known = all((suite, row.id) in kept for suite, row in prompts)  # not if `behaviour` leaves out a suite
    touched = [condition for condition in conditions if condition.intervention != "none" or not known]
    context.progress.start("generated read-outs", len(touched) * len(prompts))
    made = generate_under(
        loaded,
        context.chat(loaded),
        touched,
        [row.user_text for _, row in prompts],
        max_new_tokens=config.behaviour.max_new_tokens,
        batch_size=context.batch.generate,
        progress=context.progress,
    )
    context.progress.done()
    texts = {
        id(condition): [one.text for one in found] for condition, found in zip(touched, made, strict=True)
    }
    rows: list[Row] = []
    judged: dict[str, list[SuiteOutcomes]] = {suite: [] for suite in groups}
    for condition in conditions:
        answers = texts.get(id(condition)) or [kept[suite, row.id] for suite, row in prompts]
        for suite in groups:
            mine = [(row, text) for (name, row), text in zip(prompts, answers, strict=True) if name == suite]
            judged[suite].append(suite_outcomes(context.judge, suite, mine))
            rows += outcome_rows(context.judge, condition, suite, judged[suite][-1])
    return rows + generated_coupling_rows(
        context.judge, conditions, judged["utility"], judged["harmbench"], rng
    )
