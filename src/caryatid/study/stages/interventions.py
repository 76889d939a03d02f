"""One anchor under interventions beside controls: read-outs, dose response, and its layer profile."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...artifacts import nan_to_none
from ...causal.conditions import (
    Condition,
    ablation_conditions,
    addition_conditions,
    affine_conditions,
    control_conditions,
    localisation_conditions,
    random_bases,
)
from ...causal.localisation import layer_profile
from ...causal.locate import Carrier, Measured, scored_layers, unit_row
from ...causal.outcomes import answered_rows
from ...causal.readouts import ReadOutPrompts, generate_under, refusal_scores, teacher_forced
from ...causal.table import forced_rows
from ...config.measuring import CausalConfig
from ...data.prompts import Prompt
from ...geometry.directions import in_nullspace, orthogonalised
from ..costs import Sizes, WorkUnits, decoding, scoring
from ..series import AnchorRef, anchors_of, series_of
from ..stage import AnyStage, Stage, register_stage
from ..subsets import judged_requests, subset
from ..work import Work, texts_of
from .activations import Activations
from .answers import Answers
from .carrier import ChosenCarrier
from .chat import Chat
from .prompts import Prompts
from .refusal_tokens import RefusalTokens

Row = dict[str, Any]
TILTS: Mapping[str, float] = {"isotropic": 0.0, "covariance": 1.0}
CONTRAST = "question − instruction"
STEP_0 = "step-0 carrier"
VARIANTS = {"orthogonalised": orthogonalised, "nullspace": in_nullspace}
LATER = ("variants", "affine_alphas")  # settings without a place in the key where they ask for nothing
GENERATED = ("harmbench", "xstest_safe", "xstest_unsafe", "utility")


@dataclass(frozen=True)
class Intervened:
    """Rows of the tables `causal`, `controls` and `localisation`, without the anchor."""

    causal: tuple[Row, ...]
    controls: tuple[Row, ...]
    localisation: tuple[Row, ...]
    conditions: int


@register_stage
class Interventions(Stage[Intervened]):
    """Teacher-forced read-outs of every condition, and generated ones where the configuration asks for them."""

    kind, scope, result = "interventions", "anchor", Intervened

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts, None)
        yield self.at(Chat, None)
        yield self.at(RefusalTokens, None)
        yield self.at(Activations)
        for ref in dict.fromkeys((self.place, self.place.base)):
            yield self.at(ChosenCarrier, ref)
        yield from (self.at(Answers, ref) for ref in anchors_of(self.config, self.place.seed))

    def settings(self) -> Mapping[str, Any]:
        causal = self.study.settings["causal"]
        own = {key: value for key, value in causal.items() if not key.startswith("transfer_")}
        own = {key: value for key, value in own.items() if value or key not in LATER}
        return {"causal": own, "max_new_tokens": self.config.behaviour.max_new_tokens}

    def size(self) -> str:
        causal = self.config.causal
        return f"ranks {list(causal.ranks)}, α {list(causal.alphas)}, {causal.random_draws} controls"

    def work_units(self, sizes: Sizes) -> WorkUnits:
        """Which anchor is the most closed is not known before: every other one is taken for it with equal chance."""
        ends = {series[-1] for series in series_of(self.config, self.place.seed).values()}
        ends.add(self.place.base)
        others = [ref for ref in anchors_of(self.config, self.place.seed) if ref not in ends]
        chance = 1.0 if self.place in ends else 1 / len(others)
        return self._units(sizes, True) * chance + self._units(sizes, False) * (1 - chance)

    def _counts(self, key: bool) -> tuple[int, int]:
        """Conditions at an anchor that is, or is not, a key anchor, and how many of them also answer; at most so many:
        a carrier may lack a rank, or a direction beside it."""
        causal = self.config.causal
        controlled = _wanted(causal.controls_at, key)
        draws, others = causal.random_draws * controlled, (2 + len(causal.variants)) * controlled
        kinds = draws * (1 + len(causal.unmatched_controls))
        strengths = len(causal.alphas) + len(causal.affine_alphas)
        conditions = 1 + len(causal.ranks) * (1 + kinds) + strengths * (1 + draws) + others
        if _wanted(causal.sweeps_at, key):
            conditions += len({*causal.sweep_ranks} - {*causal.ranks})
            conditions += len({*causal.sweep_alphas} - {*causal.alphas})
        if not (key or causal.generated_at == "all"):
            return conditions, 0
        drawn = min(causal.generated_controls, draws)
        answered = (len(causal.ranks) + strengths) * (1 + drawn)
        return conditions, answered + others * bool(causal.generated_controls)

    def _units(self, sizes: Sizes, key: bool) -> WorkUnits:
        causal, model, batch = self.config.causal, sizes.model, self.study.facts.batch
        (conditions, answering), forward = self._counts(key), batch["forward"]
        harmful, answer = min(causal.prompts, sizes.counts["harmbench"]), causal.answer_tokens
        asked = max(sizes.tokens["harmbench"] - model.prefix, 1)
        followed = max(sizes.tokens["chat_heldout"] - model.prefix, 1) + answer - 1
        found = scoring(conditions * harmful, asked, forward)
        found += scoring(conditions * causal.benign_prompts, followed, forward, answer)
        if _wanted(causal.localise_at, key):
            layers = len(scored_layers(model.layers, causal.localise_stride))
            found += scoring(layers * harmful, asked, forward)
        rows = sum(min(causal.prompts, sizes.counts[suite]) for suite in GENERATED)
        _, tokens = sizes.both(*GENERATED)
        limit = self.config.behaviour.max_new_tokens
        return found + decoding(answering * rows, tokens, limit, batch["generate"])

    def run(self, work: Work) -> Intervened:
        with work.kept("read-outs"):
            return self._measured(work)

    def _measured(self, work: Work) -> Intervened:
        config, key = self.config.causal, self.place in key_anchors(work, self.place.seed)
        model, carrier = work.measured(), work.of(ChosenCarrier).carrier
        chosen = self._conditions(work, carrier, key)
        tokens = work.of(RefusalTokens, None).ids
        harmful = texts_of(judged_requests(work.of(Prompts, None), config.prompts, self.place.seed))
        examples = work.of(Chat, None).heldout[: config.benign_prompts]
        benign = [(row.user, row.answer) for row in examples]
        total = len(chosen.conditions) * (len(harmful) + len(benign))
        with work.progressing("teacher-forced read-outs", total) as progress:
            forced = teacher_forced(
                model.loaded,
                chosen.conditions,
                ReadOutPrompts.of_texts(
                    model.chat,
                    harmful,
                    tokens,
                    benign,
                    complete=[row.complete for row in examples],
                    answer_tokens=config.answer_tokens,
                ),
                batch_size=model.batch_size,
                progress=progress,
            )
        rng = np.random.default_rng(self.place.seed)
        rows = forced_rows(chosen.conditions, forced, rng)
        if key or config.generated_at == "all":
            rows += self._generated(work, [Condition(), *chosen.generated], rng)
        rows = self._at_their_sites(work, carrier, rows)
        profile: list[Row] = []
        if _wanted(config.localise_at, key):
            profile = _layer_profile(work, model, carrier, harmful, forced.refusal[0], rng)
        site = _site_columns(carrier)
        named = {f"carrier_{name}": site[name] for name in ("layer", "position")}
        named["carrier_admissible"] = site["carrier_admissible"]
        return Intervened(
            tuple(nan_to_none(row) for row in rows),
            tuple(nan_to_none({**site, **row}) for row in chosen.controls),
            tuple(nan_to_none({**named, **row}) for row in profile),
            len(chosen.conditions),
        )

    def _conditions(self, work: Work, carrier: Carrier, key: bool) -> "Collected":
        """What is done at this anchor."""
        site = carrier.site
        benign = work.of(Activations).at(site.layer, site.position).harmless
        others = {}
        if self.place != self.place.base:
            others[STEP_0] = work.of(ChosenCarrier, self.place.base).carrier.direction
        if len(carrier.contrast):
            others[CONTRAST] = carrier.contrast[0]
        for name in self.config.causal.variants:
            left = VARIANTS[name](carrier.direction, benign).float()
            if left.norm() > 1e-6 * carrier.direction.norm():  # else nothing is left to ablate
                others[f"{name} carrier"] = left
        return Collector(self.config.causal, carrier, benign, self.place.seed, key).collect(others)

    def _at_their_sites(self, work: Work, carrier: Carrier, rows: list[Row]) -> list[Row]:
        """Rows of step 0's carrier name its own site; all others name this anchor's."""
        own = _site_columns(carrier)
        start = _site_columns(work.of(ChosenCarrier, self.place.base).carrier)
        return [{**(start if row["control"] == STEP_0 else own), **row} for row in rows]

    def _generated(self, work: Work, conditions: Sequence[Condition], rng: np.random.Generator) -> list[Row]:
        """Generated read-outs: refusal of harmful prompts, any-refusal on XSTest, the utility audit, degeneracy."""
        sets, count = work.of(Prompts, None), self.config.causal.prompts
        groups: dict[str, list[Prompt]] = {
            "harmbench": judged_requests(sets, count, self.place.seed),
            **{suite: subset(getattr(sets, suite), count, self.place.seed) for suite in GENERATED[1:]},
        }
        kept = {
            (row.suite, row.prompt_id): row.text
            for row in work.of(Answers).rows
            if row.attack in ("none", "direct")
        }
        prompts = [(suite, row) for suite, rows in groups.items() for row in rows]
        known = all(
            (suite, row.id) in kept for suite, row in prompts
        )  # not if `behaviour` leaves out a suite
        asked = [number for number, one in enumerate(conditions) if one.intervention != "none" or not known]
        loaded = work.open()
        with work.progressing("generated read-outs", len(asked) * len(prompts)) as progress:
            made = generate_under(
                loaded,
                work.chat(loaded),
                [conditions[number] for number in asked],
                [row.user_text for _, row in prompts],
                max_new_tokens=self.config.behaviour.max_new_tokens,
                batch_size=work.batch.generate,
                progress=progress,
            )
        texts = {number: [one.text for one in found] for number, found in zip(asked, made, strict=True)}
        answers = [
            texts.get(number) or [kept[suite, row.id] for suite, row in prompts]
            for number in range(len(conditions))
        ]
        return answered_rows(work.judge, conditions, prompts, answers, rng)

    def summary(self, result: Intervened) -> Mapping[str, Any]:
        return {"conditions": result.conditions}


@dataclass
class Collected:
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


class Collector:
    """Collects the conditions of one anchor: the carrier ablated at every rank, added and set at every α beside
    controls, other directions, and the dose response."""

    def __init__(
        self,
        config: CausalConfig,
        carrier: Carrier,
        benign: Float[Tensor, "prompts d"],
        seed: int,
        key: bool,
    ) -> None:
        self.config, self.carrier, self.benign, self.key = config, carrier, benign, key
        self.generator = torch.Generator().manual_seed(seed)
        self.found = Collected()

    def _draw(self, rank: int, kind: str) -> Float[Tensor, "draws rank d"]:
        """Random subspaces of a rank, with a row of the `controls` table for each."""
        drawn = random_bases(
            self.benign,
            self.carrier.span(rank),
            draws=self.config.random_draws,
            generator=self.generator,
            tilt=TILTS.get(kind),
        )
        for number, (energy, tilt) in enumerate(zip(drawn.energy.tolist(), drawn.tilt.tolist(), strict=True)):
            row = {"rank": rank, "kind": kind, "draw": number, "energy": energy, "carrier": drawn.target}
            self.found.controls.append({**row, "tilt": tilt})
        return drawn.bases

    def collect(self, others: Mapping[str, Float[Tensor, "d"]]) -> Collected:
        """All conditions; `others` are directions that stand beside the carrier, by name."""
        config, carrier, found = self.config, self.carrier, self.found
        controlled = _wanted(config.controls_at, self.key)
        ranks = [rank for rank in config.ranks if rank in carrier.ranks]
        single = None
        for rank in ranks:
            drawn = self._draw(rank, "matched") if controlled else None
            single = drawn if rank == 1 else single
            found.add(ablation_conditions(carrier.span(rank), drawn), config.generated_controls)
            for kind in config.unmatched_controls if controlled else ():
                found.add(control_conditions(self._draw(rank, kind), f"random {kind}"))
        layer = carrier.site.layer
        found.add(addition_conditions(carrier.direction, layer, config.alphas, single))
        reference = self.benign.mean(dim=0)
        found.add(affine_conditions(carrier.direction, reference, layer, config.affine_alphas, single))
        for name, direction in others.items() if controlled else ():
            beside = ablation_conditions(unit_row(direction), name=name)
            found.conditions += beside
            if config.generated_controls:  # answers only where random controls answer too
                found.generated += beside
        if _wanted(config.sweeps_at, self.key):
            found.conditions += [
                Condition("ablate", "carrier", carrier.span(rank))
                for rank in config.sweep_ranks
                if rank in carrier.ranks and rank not in ranks
            ]
            alphas = [alpha for alpha in config.sweep_alphas if alpha not in config.alphas]
            found.conditions += addition_conditions(carrier.direction, layer, alphas)
        return found


def _wanted(setting: Literal["none", "key", "all"], key: bool) -> bool:
    """Whether something that is wanted at some anchors is wanted at this one."""
    return setting == "all" or (setting == "key" and key)


def _site_columns(carrier: Carrier) -> Row:
    site = carrier.site
    return {"layer": site.layer, "position": site.position, "carrier_admissible": site.admissible}


def _layer_profile(
    work: Work,
    model: Measured,
    carrier: Carrier,
    harmful: Sequence[str],
    untouched: Float[np.ndarray, "harmful"],
    rng: np.random.Generator,
) -> list[Row]:
    """The carrier ablated at one layer at a time, on the harmful prompts."""
    layers = scored_layers(model.n_layers, work.study.config.causal.localise_stride)
    with work.progressing("layer profile", len(layers) * len(harmful)) as progress:
        scores = refusal_scores(
            model.loaded,
            localisation_conditions(unit_row(carrier.direction), layers),
            model.chat.ids_many(harmful),
            work.of(RefusalTokens, None).ids,
            batch_size=model.batch_size,
            progress=progress,
        )
    return layer_profile(layers, scores, untouched, rng)


def key_anchors(work: Work, seed: int) -> set[AnchorRef]:
    """Step 0, the most closed anchor (least direct compliance) and the last anchor of each arm."""
    config = work.study.config
    anchors = anchors_of(config, seed)

    def compliance(ref: AnchorRef) -> float:
        rows = work.of(Answers, ref).to("harmbench", "direct")
        return sum(row.answered for row in rows) / max(len(rows), 1)

    closed = min(anchors[1:], key=lambda ref: (compliance(ref), ref.step, ref.arm))
    return {anchors[0], closed, *(series[-1] for series in series_of(config, seed).values())}
