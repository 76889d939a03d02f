"""One causal table for one model and one carrier, outside a study."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..behaviour.judges.base import REFUSED, Exchange
from ..behaviour.judges.registry import open_refusal_judge
from ..behaviour.outcomes import judged_prompts
from ..causal.conditions import Condition, ablation_conditions, addition_conditions, random_bases
from ..causal.readouts import generate_under, teacher_forced
from ..causal.scores import score_bank
from ..causal.table import SuiteOutcomes, forced_rows, generated_coupling_rows, outcome_rows, suite_outcomes
from ..data.prompts import Prompt
from ..data.study_prompts import StudyPrompts, build_study_prompts
from ..errors import InputError, NumericalError
from ..geometry.carriers import CALIBRATED, CandidateScores, Profile, average, select
from ..models.batch import BatchSizes, plan_batch_sizes
from ..models.check import check_loaded
from ..models.forward import block_inputs
from ..models.generate import Completion, generate
from ..models.layout import num_layers
from ..models.load import LoadedModel
from ..models.template import ChatFormat
from ..paths import hub_offline
from ..progress import NO_PROGRESS, Progress
from .carrier_file import CarrierFile

TOWARD_TEXT = "Sorry, I can't do that."  # the default of the arms' toward term
CHOICE_PROMPTS = 8
SUITES = ("harmbench", "xstest_safe", "xstest_unsafe", "utility")
FIELDS = (*SUITES, "selection_harmful", "selection_harmless", "chat_heldout", "extraction_harmless")


@dataclass(frozen=True)
class InterveneSettings:
    """What is measured.

    Attributes:
        layer: where the direction was taken and is added; None: the file's own, or chosen by scoring all layers.
        ranks: ablated. alphas: added, in units of ‖r‖. draws: random controls of each, teacher-forced.
        generated_controls: how many of these also answer, for the utility coupling by answers.
        prompts: of each kind. max_new_tokens: limit of answers.
    """

    layer: int | None
    ranks: tuple[int, ...]
    prompts: int
    alphas: tuple[float, ...]
    draws: int
    generated_controls: int
    max_new_tokens: int
    source: Literal["auto", "benchmarks", "embedded"]
    seed: int


class ChosenLayer(NamedTuple):
    """A layer, and whether a profile admits it."""

    layer: int
    admissible: bool


@dataclass(frozen=True)
class Intervened:
    """Rows of the `causal` table, the layer used, and the choice where it had to be chosen."""

    rows: list[dict[str, Any]]
    layer: int
    choice: ChosenLayer | None


def gentlest(scores: CandidateScores, profile: Profile) -> int:
    """The candidate of lowest bypass within the profile's KL, or without one that of lowest KL.

    Raises:
        NumericalError: no candidate has finite scores.
    """
    bypass, kl = average(scores).bypass[0], average(scores).kl[0]
    finite = np.isfinite(bypass) & np.isfinite(kl)
    if not finite.any():
        raise NumericalError(
            "no candidate has finite scores", where="choice of a layer", remedy="Check the model's weights."
        )
    within = finite & (np.where(finite, kl, np.inf) <= profile.kl_max)
    return int(
        np.where(within, bypass, np.inf).argmin() if within.any() else np.where(finite, kl, np.inf).argmin()
    )


class _Model:
    """One model with its prompts, refusal tokens and own benign answers."""

    def __init__(
        self, loaded: LoadedModel, settings: InterveneSettings, system: str | None, progress: Progress
    ) -> None:
        check_loaded(loaded, system)
        self.loaded, self.settings, self.progress = loaded, settings, progress
        self.chat, self.judge = ChatFormat(loaded.tokenizer, system), open_refusal_judge()
        self.batch: BatchSizes = plan_batch_sizes(loaded, 512)
        self.sets: StudyPrompts = build_study_prompts(
            source=settings.source,
            limits=dict.fromkeys(FIELDS, settings.prompts),
            seed=settings.seed,
            offline=hub_offline(),
        )
        self.harmful = [row.user_text for row in self._prompts("harmbench")]
        self.tokens = self._refusal_tokens()
        texts = [row.user_text for row in self.sets.chat_heldout]
        answers = self._answer(texts)
        followed = [(text, one) for text, one in zip(texts, answers, strict=True) if one.text]
        self.benign = [(text, one.text) for text, one in followed]
        self.complete = [one.ended for _, one in followed]

    def _prompts(self, suite: str) -> list[Prompt]:
        """A suite's prompts that a refusal judge can be asked about: copyright rows are left out."""
        return judged_prompts(getattr(self.sets, suite))

    def _answer(self, texts: Sequence[str]) -> list[Completion]:
        return generate(
            self.loaded,
            self.chat,
            texts,
            max_new_tokens=self.settings.max_new_tokens,
            batch_size=self.batch.generate,
        )

    def _refusal_tokens(self) -> list[int]:
        """First tokens of the model's refusals of selection prompts, and of the toward text."""
        rows = self.sets.selection_harmful.prompts
        answers = self._answer([row.user_text for row in rows])
        exchanges = [Exchange(r.text, c.text, r.context) for r, c in zip(rows, answers, strict=True)]
        verdicts = self.judge.judge(exchanges)
        first = {
            one.ids[0] for one, v in zip(answers, verdicts, strict=True) if v.verdict in REFUSED and one.ids
        }
        return sorted(first | {self.chat.answer_ids(TOWARD_TEXT)[0]})

    def best_layer(self, carrier: CarrierFile) -> ChosenLayer:
        """The calibrated profile's choice among the file's last-position directions; without one, the layer that
        removes most refusal within the profile's KL, or else harms least."""
        profile = CALIBRATED
        cut = profile.depth_cut(num_layers(self.loaded.model))
        layers = [layer for layer in range(cut) if carrier.usable(layer)]
        if not layers:
            raise InputError(
                "no direction below the depth cut", where=str(carrier.file), remedy="Name one with --layer."
            )
        harmless = [row.user_text for row in self.sets.selection_harmless.prompts[:CHOICE_PROMPTS]]
        harmful = [row.user_text for row in self.sets.selection_harmful.prompts[:CHOICE_PROMPTS]]
        self.progress.start("choice of a layer", len(layers) * (len(harmful) + 2 * len(harmless)))
        scores = score_bank(
            self.loaded,
            self.chat,
            torch.stack([carrier.direction(layer) for layer in layers])[None],
            harmful,
            harmless,
            self.tokens,
            layers=layers,
            positions=(-1,),
            answers=[one.ids for one in self._answer(harmless)],
            batch_size=self.batch.forward,
            progress=self.progress,
        )
        choice = select(scores, profile)
        if choice.layer is not None:
            return ChosenLayer(choice.layer, admissible=True)
        return ChosenLayer(int(scores.layers[gentlest(scores, profile)]), admissible=False)

    def benign_activations(self, layer: int) -> Float[Tensor, "prompts d"]:
        """Last-position block inputs of harmless prompts."""
        return block_inputs(
            self.loaded,
            self.chat.ids_many([row.user_text for row in self.sets.extraction_harmless]),
            layers=[layer],
            n_positions=1,
            batch_size=self.batch.forward,
        )[:, 0, 0]

    def forced(self, conditions: Sequence[Condition]) -> list[dict[str, Any]]:
        """Teacher-forced read-outs."""
        self.progress.start("teacher-forced", len(conditions) * (len(self.harmful) + len(self.benign)))
        found = teacher_forced(
            self.loaded,
            self.chat,
            conditions,
            self.harmful,
            self.benign,
            self.tokens,
            batch_size=self.batch.forward,
            complete=self.complete,
            progress=self.progress,
        )
        return forced_rows(conditions, found, np.random.default_rng(self.settings.seed))

    def generated(self, conditions: Sequence[Condition]) -> list[dict[str, Any]]:
        """Read-outs from answers to every suite, and the utility coupling of ranks with random controls among them."""
        found = {suite: self._outcomes(conditions, suite) for suite in SUITES}
        rows = [
            row
            for suite, each in found.items()
            for condition, one in zip(conditions, each, strict=True)
            for row in outcome_rows(self.judge, condition, suite, one)
        ]
        rng = np.random.default_rng(self.settings.seed)
        return rows + generated_coupling_rows(
            self.judge, conditions, found["utility"], found["harmbench"], rng
        )

    def _outcomes(self, conditions: Sequence[Condition], suite: str) -> list[SuiteOutcomes]:
        """What each condition's answers to one suite are."""
        prompts = self._prompts(suite)
        self.progress.start(f"{suite} answers", len(conditions) * len(prompts))
        made = generate_under(
            self.loaded,
            self.chat,
            conditions,
            [row.user_text for row in prompts],
            max_new_tokens=self.settings.max_new_tokens,
            batch_size=self.batch.generate,
            progress=self.progress,
        )
        return [
            suite_outcomes(
                self.judge, suite, [(row, one.text) for row, one in zip(prompts, answers, strict=True)]
            )
            for answers in made
        ]


def _energy_rows(
    conditions: Sequence[Condition], energies: Sequence[float], prompts: int
) -> list[dict[str, Any]]:
    """Mean ‖Px‖² over benign activations of each ablated subspace: how well the random ones match the carrier."""
    return [
        {
            **condition.columns(),
            "read_out": "benign_energy",
            "value": energy,
            "n": prompts,
            "lo": np.nan,
            "hi": np.nan,
            "judge": "",
        }
        for condition, energy in zip(conditions, energies, strict=True)
    ]


def intervene_once(
    loaded: LoadedModel,
    carrier: CarrierFile,
    settings: InterveneSettings,
    system: str | None,
    progress: Progress = NO_PROGRESS,
) -> Intervened:
    """Rows of a causal table: nothing, the carrier ablated and added, and random controls (teacher-forced).

    Raises:
        InputError: a layer or rank that the model or the file does not have, α not finite, or unusable prompts.
    """
    layer = carrier.layer if settings.layer is None else settings.layer
    for alpha in settings.alphas:  # before anything is computed
        if not np.isfinite(alpha):
            raise InputError(f"α is {alpha}", where="--alpha", remedy="Give a finite number.")
    if layer is not None:
        carrier.direction(layer)
    for rank in settings.ranks:
        carrier.check_rank(rank)
        if layer is not None:
            carrier.basis(rank, layer)
    model = _Model(loaded, settings, system, progress)
    choice = model.best_layer(carrier) if layer is None else None
    used = choice.layer if choice is not None else layer
    assert used is not None
    direction, activations = carrier.direction(used), model.benign_activations(used)
    generator = torch.Generator().manual_seed(settings.seed)
    conditions, single, energies = [Condition()], None, []
    for rank in settings.ranks:
        basis = carrier.basis(rank, used)
        drawn = random_bases(activations, basis, draws=settings.draws, generator=generator)
        single = drawn.bases if rank == 1 else single
        ablated = ablation_conditions(basis, drawn.bases)
        energies += _energy_rows(ablated, [drawn.target, *drawn.energy.tolist()], len(activations))
        conditions += ablated
    conditions += addition_conditions(direction, used, settings.alphas, single)
    rows = model.forced(conditions) + energies
    rows += model.generated([c for c in conditions if c.draw is None or c.draw < settings.generated_controls])
    progress.done()
    return Intervened(rows, used, choice)
