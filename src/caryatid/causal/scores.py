"""Scores of candidate directions on selection prompts: bypass, induce and KL (protocol §5)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError, NumericalError
from ..geometry.carriers import CandidateScores
from ..geometry.cosmic import CosmicProducts, cosmic_products
from ..geometry.directions import is_candidate, unit
from ..models.directional import Ablate, Add
from ..models.layout import num_layers
from ..models.load import LoadedModel
from ..progress import Progress
from .answer_reference import LAST_KL, MEAN_KL, AnswerReference
from .grid import UNTOUCHED, ConditionGroup, GridReduce, evaluate_grid
from .scored_outputs import ScoredOutputs, score_with_outputs


def refusal_score(
    logits: Float[Tensor, "rows vocab"], tokens: Int[Tensor, "refusal_tokens"]
) -> Float[Tensor, "rows"]:
    """log P(T) − log(1 − P(T)) of the next token, T the refusal tokens.

    As logsumexp over T minus logsumexp over all other tokens, which neither overflows nor cancels.
    """
    inside = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    inside[tokens.to(logits.device)] = True
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    refused = wide[:, inside].logsumexp(dim=-1)
    return refused - wide.masked_fill(inside, -torch.inf).logsumexp(dim=-1)


def refusal_token_ids(loaded: LoadedModel, tokens: Sequence[int]) -> Int[Tensor, "refusal_tokens"]:
    """The set T as a tensor on the model's device.

    Raises:
        InputError: it is empty, holds the whole vocabulary, or holds an id that the model does not have.
    """
    chosen = sorted(set(tokens))
    vocabulary = int(loaded.model.config.get_text_config().vocab_size)
    if not chosen or len(chosen) >= vocabulary:
        raise InputError(f"{len(chosen)} refusal tokens of {vocabulary}", where="refusal tokens")
    if chosen[0] < 0 or chosen[-1] >= vocabulary:
        raise InputError(f"id {chosen[-1]} is outside the vocabulary of {vocabulary}", where="refusal tokens")
    return torch.tensor(chosen, device=loaded.device)


def score_reduce(tokens: Int[Tensor, "refusal_tokens"]) -> GridReduce:
    """Reduction of a grid to refusal scores at the last position."""
    return lambda batch: refusal_score(batch.logits[:, -1], tokens)


@dataclass(frozen=True)
class CandidateDirections:
    """Candidate directions, and where each was read.

    Attributes:
        vectors: one direction per row, not normalised.
        positions: of each; −1 is the last prompt token. layers: of each, the block at whose input it was read.

    Raises:
        InputError: not one position and one layer per direction.
    """

    vectors: Float[Tensor, "candidates d"]
    positions: tuple[int, ...]
    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.vectors) == len(self.positions) == len(self.layers):
            raise InputError(
                f"{len(self.vectors)} directions at {len(self.positions)} positions and {len(self.layers)} layers",
                where="candidate directions",
            )

    def __len__(self) -> int:
        return len(self.layers)

    @classmethod
    def of_grid(
        cls,
        directions: Float[Tensor, "positions layers d"],
        *,
        positions: Sequence[int],
        layers: Sequence[int],
    ) -> "CandidateDirections":
        """Those of r[p, l] that are not zero, in the order of positions, then layers.

        Raises:
            InputError: axes that are not `positions` and `layers`. NumericalError: a direction is not finite.
        """
        if directions.shape[:2] != (len(positions), len(layers)):
            raise InputError(
                f"directions of {tuple(directions.shape[:2])} for {len(positions)} positions and {len(layers)} layers",
                where="candidate directions",
            )
        places = is_candidate(directions).nonzero().tolist()
        return cls(
            directions[[p for p, _ in places], [i for _, i in places]],
            tuple(int(positions[p]) for p, _ in places),
            tuple(int(layers[i]) for _, i in places),
        )


@dataclass(frozen=True)
class SelectionPrompts:
    """What candidates are scored on.

    Attributes:
        harmful, harmless: token rows of the selection prompts, in the model's chat format.
        answers: token ids of the base model's own greedy answers to `harmless`.
        refusal_tokens: the set T.
    """

    harmful: Sequence[Sequence[int]]
    harmless: Sequence[Sequence[int]]
    answers: Sequence[Sequence[int]]
    refusal_tokens: Sequence[int]


@dataclass(frozen=True)
class ScoringSettings:
    """How candidates are scored.

    Attributes:
        batch_size: rows per forward pass.
        answer_tokens: the second KL is averaged over so many tokens of each answer, fewer where it is shorter.
        discard_below: candidates whose gap-normalised bypass effect is below this are not scored further; their induce
            and KL stay NaN. None: score all.
        discard_after: that effect is judged on the first so many harmful prompts, and the bypass of candidates left out
            is NaN on the others. None: on all.
        cosmic_layers: blocks whose outputs the COSMIC scores compare (`geometry.cosmic.least_alike_layers`), read in
            the same forward passes. Empty: no COSMIC scores.

    Raises:
        InputError: `discard_after` is below 1.
    """

    batch_size: int
    answer_tokens: int = 8
    discard_below: float | None = None
    discard_after: int | None = None
    cosmic_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.discard_after is not None and self.discard_after < 1:
            raise InputError(
                f"discard_after is {self.discard_after}, at least 1 prompt is needed", where="ScoringSettings"
            )


class Unablated(NamedTuple):
    """What the model as it is does on the selection prompts; the same for all candidates.

    Attributes:
        harmful, harmless: refusal scores of either kind. reference: its own predictions along the harmless answers.
    """

    harmful: ScoredOutputs
    harmless: ScoredOutputs
    reference: AnswerReference


def measure_unablated(loaded: LoadedModel, prompts: SelectionPrompts, settings: ScoringSettings) -> Unablated:
    """Measured once for all the candidates of a model, however many calls of `score_candidates` they take.

    Raises:
        InputError: answers or tokens do not fit. NumericalError: a score is not finite.
    """
    reduce = score_reduce(refusal_token_ids(loaded, prompts.refusal_tokens))
    sides = [
        score_with_outputs(
            loaded,
            ids,
            [UNTOUCHED],
            reduce=reduce,
            layers=settings.cosmic_layers,
            batch_size=settings.batch_size,
        )
        for ids in (prompts.harmful, prompts.harmless)
    ]
    if not all(torch.isfinite(side.scores).all() for side in sides):
        raise NumericalError(
            "unablated refusal scores are not finite",
            where="candidate scores",
            remedy="Check the anchor's weights.",
        )
    reference = AnswerReference(
        loaded,
        prompts.harmless,
        prompts.answers,
        answer_tokens=settings.answer_tokens,
        batch_size=settings.batch_size,
    )
    return Unablated(sides[0], sides[1], reference)


def score_candidates(
    loaded: LoadedModel,
    candidates: CandidateDirections,
    prompts: SelectionPrompts,
    settings: ScoringSettings,
    *,
    progress: Progress | None = None,
    unablated: Unablated | None = None,
) -> CandidateScores:
    """Bypass, induce and KL of every candidate, per prompt.

    Args:
        progress: advances by one per pair of candidate and prompt: candidates × (harmful + 2 · harmless) in all, less
            where candidates are left out.
        unablated: what `measure_unablated` gave for this model, prompts and settings; None: measured here.

    Raises:
        InputError: layers, answers or tokens do not fit. NumericalError: a direction or the model's output is not
            finite.
    """
    scorer = _Scorer(loaded, candidates, prompts, settings, progress)
    plain = unablated or measure_unablated(loaded, prompts, settings)
    ablated, kept = scorer.bypass(plain)
    kl = scorer.kl(kept, plain.reference)
    added = scorer.induce(kept, plain.harmless)
    return CandidateScores(
        positions=np.array(candidates.positions, dtype=np.int64),
        layers=np.array(candidates.layers, dtype=np.int64),
        n_layers=num_layers(loaded.model),
        harmful=plain.harmful.scores[0].double().numpy(),
        harmless=plain.harmless.scores[0].double().numpy(),
        bypass=ablated.scores.double().numpy(),
        induce=added.scores.double().numpy(),
        kl=kl[..., LAST_KL].double().numpy(),
        kl_answer=kl[..., MEAN_KL].double().numpy(),
        cosmic=_cosmic(plain, ablated, added),
    )


class _Scorer:
    """The three measurements of some candidates on one model."""

    def __init__(
        self,
        loaded: LoadedModel,
        candidates: CandidateDirections,
        prompts: SelectionPrompts,
        settings: ScoringSettings,
        progress: Progress | None,
    ) -> None:
        depth = num_layers(loaded.model)
        if any(not 0 <= layer < depth for layer in candidates.layers):
            raise InputError(
                f"layers {sorted(set(candidates.layers))} are not all among 0 … {depth - 1}",
                where="candidate directions",
            )
        if not torch.isfinite(candidates.vectors).all():
            raise NumericalError("a direction is not finite", where="candidate directions")
        self.loaded, self.prompts, self.settings, self.progress = loaded, prompts, settings, progress
        self.layers = candidates.layers
        self.vectors = candidates.vectors.to(loaded.device)
        self.reduce = score_reduce(refusal_token_ids(loaded, prompts.refusal_tokens))

    def _measure(self, seqs: Sequence[Sequence[int]], groups: Sequence[ConditionGroup]) -> ScoredOutputs:
        return score_with_outputs(
            self.loaded,
            seqs,
            groups,
            reduce=self.reduce,
            layers=self.settings.cosmic_layers,
            batch_size=self.settings.batch_size,
            progress=self.progress,
        )

    def _ablations(self, rows: Int[Tensor, "kept"]) -> ConditionGroup:
        """Each of the candidates `rows` ablated at every site."""
        directions = unit(self.vectors[rows.to(self.vectors.device)].double()).float()
        return ConditionGroup((Ablate(directions.unsqueeze(1)),), range(len(rows)))

    def bypass(self, plain: Unablated) -> tuple[ScoredOutputs, Int[Tensor, "kept"]]:
        """Harmful prompts with each candidate ablated, and the numbers of the candidates to score further."""
        harmful, settings, count = self.prompts.harmful, self.settings, len(self.layers)
        if not count:
            return plain.harmful.nothing(0, len(harmful)), torch.arange(0)
        first = len(harmful)
        if settings.discard_below is not None and settings.discard_after is not None:
            first = min(settings.discard_after, first)
        ablated = self._measure(harmful[:first], [self._ablations(torch.arange(count))])
        kept = torch.arange(count)
        h, s = (
            float(scores.mean()) for scores in (plain.harmful.scores[0, :first], plain.harmless.scores[0])
        )
        if settings.discard_below is not None and h > s:
            effects = (h - ablated.scores.mean(dim=1)) / (h - s)
            kept = (effects >= settings.discard_below).nonzero()[:, 0]
        if first == len(harmful):
            return ablated, kept
        rest = ablated.nothing(count, len(harmful) - first)
        if len(kept):
            self._put(rest, kept, self._measure(harmful[first:], [self._ablations(kept)]))
        outputs = None
        if ablated.outputs is not None and rest.outputs is not None:
            outputs = torch.cat([ablated.outputs, rest.outputs], dim=1)
        return ScoredOutputs(torch.cat([ablated.scores, rest.scores], dim=1), outputs), kept

    @staticmethod
    def _put(whole: ScoredOutputs, rows: Int[Tensor, "kept"], part: ScoredOutputs) -> None:
        """Write the values of the candidates `rows` into those of all."""
        whole.scores[rows] = part.scores
        if whole.outputs is not None and part.outputs is not None:
            whole.outputs[rows] = part.outputs

    def kl(self, kept: Int[Tensor, "kept"], base: AnswerReference) -> Float[Tensor, "candidates harmless 3"]:
        """Columns of `AnswerReference.compare` with each of the candidates `kept` ablated; NaN for the others."""
        kl = torch.full((len(self.layers), len(base.seqs), 3), torch.nan)
        if len(kept):
            kl[kept] = evaluate_grid(
                self.loaded,
                base.seqs,
                [self._ablations(kept)],
                reduce=base.compare,
                keep=base.keep,
                batch_size=self.settings.batch_size,
                progress=self.progress,
            )
        return kl

    def induce(self, kept: Int[Tensor, "kept"], untouched: ScoredOutputs) -> ScoredOutputs:
        """Harmless prompts with each of the candidates `kept` added at its layer; NaN for the others."""
        added = untouched.nothing(len(self.layers), len(self.prompts.harmless))
        if not len(kept):
            return added
        layers = torch.tensor(self.layers)[kept]
        groups = []
        for layer in layers.unique().tolist():
            members = (layers == layer).nonzero()[:, 0]
            vectors = self.vectors[kept[members].to(self.vectors.device)].float()
            add = Add(vectors, torch.full((len(members),), layer))
            groups.append(ConditionGroup((add,), members.tolist(), start=layer))
        self._put(added, kept, self._measure(self.prompts.harmless, groups))
        if added.outputs is not None and untouched.outputs is not None:
            # Blocks before the one at whose input is added put out what they always do.
            before = torch.tensor(self.settings.cosmic_layers) < layers[:, None]  # [kept, layers]
            added.outputs[kept] = torch.where(
                before[:, None, :, None], untouched.outputs, added.outputs[kept]
            )
        return added


def _cosmic(untouched: Unablated, ablated: ScoredOutputs, added: ScoredOutputs) -> CosmicProducts | None:
    """What COSMIC's scores follow from; None where no outputs were asked for."""
    harmful, harmless = untouched.harmful.outputs, untouched.harmless.outputs
    if harmful is None or harmless is None or ablated.outputs is None or added.outputs is None:
        return None
    return cosmic_products(ablated.outputs, added.outputs, harmful[0], harmless[0])
