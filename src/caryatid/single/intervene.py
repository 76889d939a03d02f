"""One causal table for one model and one carrier, outside a study."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..behaviour.judges.registry import open_refusal_judge
from ..behaviour.outcomes import judged_prompts
from ..causal.conditions import Condition, ablation_conditions, addition_conditions, random_bases
from ..causal.locate import Measured, choose, refusal_tokens_of, selection_prompts
from ..causal.outcomes import answered_rows
from ..causal.readouts import ReadOutPrompts, generate_under, teacher_forced
from ..causal.scores import CandidateDirections, ScoringSettings, score_candidates
from ..causal.table import forced_rows
from ..data.prompts import Prompt
from ..data.study_prompts import Source, StudyPrompts, build_study_prompts
from ..errors import InputError
from ..geometry.carriers import CALIBRATED, MIN_GAP
from ..models.batch import plan_batch_sizes
from ..models.check import check_loaded
from ..models.forward import block_inputs
from ..models.generate import Decoding, generate
from ..models.load import LoadedModel
from ..paths import hub_offline
from ..progress import NO_PROGRESS, Progress
from .answered import Answered, answers_under
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
    source: Source
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


class _Intervention:
    """One model with its prompts, refusal tokens and own benign answers."""

    def __init__(
        self, loaded: LoadedModel, settings: InterveneSettings, system: str | None, progress: Progress
    ) -> None:
        check_loaded(loaded, system)
        self.settings, self.judge = settings, open_refusal_judge()
        self.batch = plan_batch_sizes(loaded, 512)
        self.model = Measured(loaded, loaded.chat(system), self.batch.forward, progress)
        self.sets: StudyPrompts = build_study_prompts(
            source=settings.source,
            limits=dict.fromkeys(FIELDS, settings.prompts),
            seed=settings.seed,
            offline=hub_offline(),
        )
        self.harmful = [row.user_text for row in self._prompts("harmbench")]
        texts = [row.user_text for row in self.sets.chat_heldout]
        decoding = Decoding(settings.max_new_tokens, self.batch.generate)
        answers = zip(texts, generate(loaded, self.model.chat, texts, decoding), strict=True)
        followed = [(text, one) for text, one in answers if one.text and not one.unfinished]
        self.benign = [(text, one.text) for text, one in followed]
        self.complete = [one.ended for _, one in followed]

    def _prompts(self, suite: str) -> list[Prompt]:
        """A suite's prompts that a refusal judge can be asked about: copyright rows are left out."""
        return judged_prompts(getattr(self.sets, suite))

    @cached_property
    def selection(self) -> tuple[Answered, Answered]:
        """Answers to the harmful and the harmless selection prompts."""
        harmful, harmless = (
            answers_under(
                self.model,
                self.judge,
                rows.prompts,
                [Condition()],
                max_new_tokens=self.settings.max_new_tokens,
                batch_size=self.batch.generate,
            ).each[0]
            for rows in (self.sets.selection_harmful, self.sets.selection_harmless)
        )
        return harmful, harmless

    @cached_property
    def tokens(self) -> list[int]:
        """The refusal tokens of the model's answers to the selection prompts."""
        first = [one for side in self.selection for one in side.first_tokens]
        return sorted(row.token for row in refusal_tokens_of(self.model, first, TOWARD_TEXT))

    def best_layer(self, carrier: CarrierFile) -> ChosenLayer:
        """The calibrated profile's choice among the file's last-position directions, or what stands in for it."""
        cut = CALIBRATED.depth_cut(self.model.n_layers)
        layers = [layer for layer in range(cut) if carrier.usable(layer)]
        if not layers:
            raise InputError(
                "no direction below the depth cut", where=str(carrier.file), remedy="Name one with --layer."
            )
        harmful, harmless = self.selection
        count = CHOICE_PROMPTS
        sets = self.sets
        selection = selection_prompts(
            self.model.chat,
            [row.user_text for row in sets.selection_harmful.prompts[:count]],
            [row.user_text for row in sets.selection_harmless.prompts[:count]],
            harmless.ids[:count],
            self.tokens,
        )
        passes = len(selection.harmful) + 2 * len(selection.harmless)
        self.model.progress.start("choice of a layer", len(layers) * passes)
        directions = torch.stack([carrier.direction(layer) for layer in layers])
        candidates = CandidateDirections(directions, (-1,) * len(layers), tuple(layers))
        settings = ScoringSettings(self.model.batch_size)
        scores = score_candidates(
            self.model.loaded, candidates, selection, settings, progress=self.model.progress
        )
        rates = (harmful.refusal_rate, harmless.refusal_rate)
        site = choose(scores, CALIBRATED, min_gap=MIN_GAP, refusal_rates=rates).site
        return ChosenLayer(site.layer, site.admissible)

    def benign_activations(self, layer: int) -> Float[Tensor, "prompts d"]:
        """Last-position block inputs of harmless prompts."""
        return block_inputs(
            self.model.loaded,
            self.model.chat.ids_many([row.user_text for row in self.sets.extraction_harmless]),
            layers=[layer],
            n_positions=1,
            batch_size=self.batch.forward,
        )[:, 0, 0]

    def forced(self, conditions: Sequence[Condition]) -> list[dict[str, Any]]:
        """Teacher-forced read-outs."""
        progress = self.model.progress
        progress.start("teacher-forced", len(conditions) * (len(self.harmful) + len(self.benign)))
        found = teacher_forced(
            self.model.loaded,
            conditions,
            ReadOutPrompts.of_texts(
                self.model.chat, self.harmful, self.tokens, self.benign, complete=self.complete
            ),
            batch_size=self.batch.forward,
            progress=progress,
        )
        return forced_rows(conditions, found, np.random.default_rng(self.settings.seed))

    def generated(self, conditions: Sequence[Condition]) -> list[dict[str, Any]]:
        """Read-outs from answers to every suite, and the utility coupling of ranks with random controls among them."""
        asked = [(suite, row) for suite in SUITES for row in self._prompts(suite)]
        self.model.progress.start("answers", len(conditions) * len(asked))
        made = generate_under(
            self.model.loaded,
            self.model.chat,
            conditions,
            [row.user_text for _, row in asked],
            max_new_tokens=self.settings.max_new_tokens,
            batch_size=self.batch.generate,
            progress=self.model.progress,
        )
        texts = [[one.text for one in answers] for answers in made]
        rng = np.random.default_rng(self.settings.seed)
        return answered_rows(self.judge, conditions, asked, texts, rng)


def _energy_rows(
    conditions: Sequence[Condition], energies: Sequence[float], prompts: int
) -> list[dict[str, Any]]:
    """Mean ‖Px‖² over benign activations of each ablated subspace: how well the random ones match the carrier."""
    rest = {"read_out": "benign_energy", "n": prompts, "lo": np.nan, "hi": np.nan, "judge": ""}
    return [
        {**condition.columns(), **rest, "value": energy}
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
    model = _Intervention(loaded, settings, system, progress)
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
