"""The scored candidate directions of one anchor: bypass, induce and KL per selection prompt, and COSMIC's cosines."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...artifacts import StageFolder
from ...causal.locate import CandidateScorer, CandidateSettings, Measured, scored_layers, selection_prompts
from ...config import StudyConfig
from ...errors import InputError
from ...geometry.carriers import UNDISCRIMINATING_ABOVE, CandidateScores
from ...geometry.directions import refused_minus_answered
from ...models.forward import block_inputs
from ..costs import Sizes, WorkUnits, scoring
from ..series import AnchorRef
from ..stage import AnyStage, Stage, register_stage
from ..work import Work, texts_of
from .activations import Activations
from .prompts import Prompts
from .refusal_tokens import RefusalTokens
from .selection import Selection

# Settings of `geometry` that scores depend on.
SCORING = ("scored_depth", "layer_stride", "answer_tokens", "discard_below", "discard_after")


@dataclass(frozen=True)
class Candidates:
    """Per-prompt scores, and a note on the refused-minus-answered direction where harmless prompts are refused too."""

    scores: CandidateScores
    note: str = ""


@register_stage
class ScoredCandidates(Stage[Candidates]):
    """Every candidate below the scored depth, at every post-instruction position."""

    kind, scope, result = "candidates", "anchor", Candidates

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts, None)
        yield self.at(RefusalTokens, None)
        yield self.at(Activations)
        yield self.at(Selection)

    def settings(self) -> Mapping[str, Any]:
        return {key: self.study.settings["geometry"][key] for key in SCORING}

    def size(self) -> str:
        geometry = self.config.geometry
        return f"every {geometry.layer_stride}. layer, {geometry.positions} position(s)"

    def work_units(self, sizes: Sizes) -> WorkUnits:
        opened = sizes.opened(self.config, self.place)  # anew: all anchors answered in between
        return opened + scored_units(self, sizes, candidate_count(self.config, sizes), early_discard=True)

    def run(self, work: Work) -> Candidates:
        scorer = scorer_at(work)
        total = scorer.candidates * scorer.passes
        with work.kept("scores"), work.progressing("candidate scores", total):
            scores = scorer.score_all()
        note = ""
        if work.of(Selection).refusal_rates[1] > UNDISCRIMINATING_ABOVE:
            note = self._refused_minus_answered(work, scorer)
        return Candidates(scores, note)

    def _refused_minus_answered(self, work: Work, scorer: CandidateScorer) -> str:
        """Where harmless prompts are refused too: the direction of those refused minus those answered (protocol §5)."""
        flags = torch.tensor([row.refused for row in work.of(Selection).harmless if row.ids])
        values = block_inputs(
            scorer.model.loaded,
            scorer.selection.harmless,
            layers=scorer.layers,
            n_positions=len(scorer.positions),
            batch_size=scorer.model.batch_size,
        )
        try:
            # [prompts, positions, layers, d], as directions are
            found = refused_minus_answered(values.transpose(1, 2), flags)
        except InputError as error:
            return error.what
        work.folder.write_tensors(
            "refused_minus_answered.safetensors", {"direction": found.float().contiguous()}
        )
        return cosine_note(found, scorer.directions())

    def save(self, result: Candidates, folder: StageFolder) -> None:
        scores = result.scores
        tensors = {name: torch.from_numpy(value) for name, value in scores.arrays().items()}
        folder.write_tensors("scores.safetensors", tensors)
        folder.write_json("candidates.json", {"n_layers": scores.n_layers, "note": result.note})

    def load(self, folder: StageFolder) -> Candidates:
        stored = folder.read_json("candidates.json")
        arrays = {key: value.numpy() for key, value in folder.read_tensors("scores.safetensors").items()}
        return Candidates(CandidateScores.from_arrays(arrays, int(stored["n_layers"])), stored["note"])

    def summary(self, result: Candidates) -> Mapping[str, Any]:
        return {"candidates": len(result.scores), "gap": result.scores.gap, "note": result.note}


def cosine_note(
    found: Float[Tensor, "positions layers d"], directions: Float[Tensor, "positions layers d"]
) -> str:
    """How much the refused-minus-answered directions resemble the harmful-minus-harmless ones."""
    cosines = torch.nn.functional.cosine_similarity(found, directions, dim=-1)
    return f"cosine with the harmful-minus-harmless direction: {float(cosines.abs().max()):.2f} at most"


def candidate_count(config: StudyConfig, sizes: Sizes) -> int:
    """Candidates of an anchor."""
    geometry = config.geometry
    positions = 1 if geometry.positions == "last" else sizes.model.positions
    return positions * len(scored_layers(sizes.model.layers, geometry.layer_stride, geometry.scored_depth))


def scored_units(
    stage: Stage[Any], sizes: Sizes, candidates: float, *, share: float = 1.0, early_discard: bool = False
) -> WorkUnits:
    """Bypass, KL and induce of candidates; `share`: of the selection prompts.

    What the prompts have in common runs once per candidate, and induce runs from the candidate's layer on. With early
    discard half of the candidates are taken to be left after the first prompts.
    """
    geometry, batch = stage.config.geometry, stage.study.facts.batch["forward"]
    harmful, harmless = (share * sizes.counts[f"selection_{side}"] for side in ("harmful", "harmless"))
    rest_harmful, rest_harmless = (
        max(sizes.tokens[f"selection_{side}"] - sizes.model.prefix, 1) for side in ("harmful", "harmless")
    )
    layers = scored_layers(sizes.model.layers, geometry.layer_stride, geometry.scored_depth)
    late = 1 - sum(layers) / len(layers) / sizes.model.layers
    discarding = early_discard and geometry.discard_below is not None
    left = 0.5 if discarding else 1.0
    first = min(geometry.discard_after, harmful) if discarding else harmful
    answer = geometry.answer_tokens
    return (
        scoring(candidates * (first + left * (harmful - first)), rest_harmful, batch)
        + scoring(left * candidates * harmless, rest_harmless + answer - 1, batch, answer)
        + scoring(left * candidates * harmless, rest_harmless * late, batch)
    )


def scorer_at(work: Work) -> CandidateScorer:
    """The scorer of the anchor in hand, with the study's refusal tokens."""
    tokens = work.of(RefusalTokens, None).ids
    return scorer_of(work.measured(), work, work.entry.stage.place, tokens)


def scorer_of(model: Measured, work: Work, ref: AnchorRef, tokens: Sequence[int]) -> CandidateScorer:
    """The scorer of an anchor with some refusal tokens."""
    sets, geometry = work.of(Prompts, None), work.study.config.geometry
    selection = selection_prompts(
        model.chat,
        texts_of(sets.selection_harmful),
        texts_of(sets.selection_harmless),
        [row.ids for row in work.of(Selection, ref).harmless],
        tokens,
    )
    settings = CandidateSettings(**{key: getattr(geometry, key) for key in SCORING})
    return CandidateScorer(model, work.of(Activations, ref), selection, settings)


def plain_scores(scores: CandidateScores) -> dict[str, Any]:
    """Scores for JSON, which has no NaN: what is not finite is null."""
    plain: dict[str, Any] = {}
    for name, value in scores.arrays().items():
        cells = value.astype(object)
        cells[~np.isfinite(value)] = None
        plain[name] = cells.tolist()
    return plain


def scores_from_plain(row: Mapping[str, Any], n_layers: int) -> CandidateScores:
    """Read back what `plain_scores` gave; null is NaN."""
    whole = {name: np.array(row[name], dtype=np.int64) for name in ("positions", "layers")}
    real = {name: np.array(value, dtype=np.float64) for name, value in row.items() if name not in whole}
    return CandidateScores.from_arrays({**whole, **real}, n_layers)
