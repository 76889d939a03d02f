"""Where one model carries refusal: activations, scored candidate directions, the chosen carrier or its stand-in.

The same functions serve every anchor of a study and a single model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError, NumericalError
from ..geometry.carriers import CandidateScores, CarrierChoice, Profile, average, select
from ..geometry.cosmic import least_alike_layers
from ..geometry.directions import candidate_directions, category_directions, mean_difference, subspace
from ..geometry.profiles import depth_cut
from ..geometry.rank import SiteActivations
from ..geometry.tokens import TokenShares, refusal_token_shares
from ..models.capture import capture_block_outputs
from ..models.directional import Ablate, Add
from ..models.forward import block_inputs
from ..models.layout import num_layers
from ..models.load import LoadedModel
from ..models.template import ChatFormat
from ..progress import NO_PROGRESS, Progress
from .activations import at_site
from .scores import (
    CandidateDirections,
    ScoringSettings,
    SelectionPrompts,
    Unablated,
    measure_unablated,
    score_candidates,
)


@dataclass(frozen=True)
class Activations:
    """Residual stream at block inputs, at the post-instruction positions of each extraction prompt; float32.

    Attributes:
        least_alike_layers: those that COSMIC compares, where the two kinds of prompts are least alike.
        post_tokens: the tokens at the positions, the last prompt token last.
    """

    harmful: Float[Tensor, "prompts layers positions d"]
    harmless: Float[Tensor, "_ layers positions d"]
    least_alike_layers: tuple[int, ...]
    post_tokens: tuple[str, ...]

    def at(self, layer: int, position: int) -> SiteActivations:
        """Activations at one site; `position` −1 is the last token."""
        return at_site(self.harmful, self.harmless, layer, position)


@dataclass(frozen=True)
class Measured:
    """A model, how it is talked to, and the batch size of forward passes."""

    loaded: LoadedModel
    chat: ChatFormat
    batch_size: int
    progress: Progress = field(default=NO_PROGRESS, repr=False)

    @property
    def n_layers(self) -> int:
        """L."""
        return num_layers(self.loaded.model)


def extraction_activations(
    model: Measured, harmful: Sequence[str], harmless: Sequence[str], n_positions: int
) -> Activations:
    """Activations on the extraction prompts, in one pass over each kind."""
    depth = model.n_layers
    sides, outputs = [], []
    for texts in (harmful, harmless):
        with capture_block_outputs(model.loaded.model, [depth - 1]) as captured:
            rows = block_inputs(
                model.loaded,
                model.chat.ids_many(texts),
                layers=range(depth),
                n_positions=n_positions,
                batch_size=model.batch_size,
            )
        # What block l puts out is the input of block l + 1; the last block's output goes to no block.
        last = captured.take().double().mean(dim=0).cpu()
        outputs.append(torch.cat([rows[:, 1:, -1].double().mean(dim=0), last]))
        sides.append(rows)
    post = tuple(model.chat.post_tokens[-n_positions:])
    return Activations(sides[0], sides[1], tuple(least_alike_layers(*outputs)), post)


def scored_layers(n_layers: int, stride: int, depth: float = 1.0) -> list[int]:
    """Every `stride`-th layer, counted down from the deepest of those with l < ⌊depth · L⌋.

    Raises:
        InputError: there is none.
    """
    found = sorted(range(depth_cut(depth, n_layers) - 1, -1, -stride))
    if not found:
        raise InputError(
            f"no layer of {n_layers} is below {depth} of the depth",
            where="geometry.scored_depth",
            remedy="Raise it.",
        )
    return found


def selection_prompts(
    chat: ChatFormat,
    harmful: Sequence[str],
    harmless: Sequence[str],
    answers: Sequence[Sequence[int]],
    refusal_tokens: Sequence[int],
) -> SelectionPrompts:
    """What candidates are scored on, from users' texts; harmless prompts without an answer are left out.

    Args:
        answers: the model's own tokens after each harmless prompt; empty where its thought is unfinished.

    Raises:
        InputError: no harmless prompt has an answer.
    """
    answered = [(text, ids) for text, ids in zip(harmless, answers, strict=True) if ids]
    if not answered:
        raise InputError(
            f"no answer to {len(harmless)} harmless prompts finishes its thought",
            where="selection prompts",
            remedy="Raise the token limit of answers, or let them follow an empty thought (thinking off).",
        )
    return SelectionPrompts(
        harmful=chat.ids_many(harmful),
        harmless=chat.ids_many([text for text, _ in answered]),
        answers=[ids for _, ids in answered],
        refusal_tokens=refusal_tokens,
    )


@dataclass(frozen=True)
class CandidateSettings:
    """Which candidates are scored, and how far.

    Attributes:
        layer_stride, scored_depth: see `scored_layers`. answer_tokens, discard_below, discard_after: see
            `ScoringSettings`.
    """

    layer_stride: int = 1
    scored_depth: float = 1.0
    answer_tokens: int = 8
    discard_below: float | None = None
    discard_after: int = 8


class CandidateScorer:
    """Scores candidate directions of one model on its selection prompts."""

    def __init__(
        self,
        model: Measured,
        activations: Activations,
        selection: SelectionPrompts,
        settings: CandidateSettings,
    ) -> None:
        self.model, self.selection, self.settings = model, selection, settings
        self.layers = scored_layers(model.n_layers, settings.layer_stride, settings.scored_depth)
        self.positions = list(range(-activations.harmful.shape[2], 0))
        self.cosmic_layers = activations.least_alike_layers
        self.harmful = activations.harmful[:, self.layers]
        self.harmless = activations.harmless[:, self.layers]
        self._unablated: dict[bool, Unablated] = {}  # by whether blocks' outputs were kept for COSMIC

    @property
    def candidates(self) -> int:
        """How many candidates there are at most."""
        return len(self.positions) * len(self.layers)

    @property
    def passes(self) -> int:
        """Forward passes of each candidate: what progress counts."""
        return len(self.selection.harmful) + 2 * len(self.selection.harmless)

    def directions(
        self, harmful: Any = slice(None), harmless: Any = slice(None)
    ) -> Float[Tensor, "positions layers d"]:
        """Differences in means over the chosen rows of the extraction prompts."""
        return candidate_directions(self.harmful[harmful], self.harmless[harmless])

    def score(
        self, candidates: CandidateDirections, *, cosmic: bool, discard_below: float | None = None
    ) -> CandidateScores:
        """Per-prompt scores of some candidates."""
        settings = ScoringSettings(
            self.model.batch_size,
            answer_tokens=self.settings.answer_tokens,
            discard_below=discard_below,
            discard_after=self.settings.discard_after,
            cosmic_layers=self.cosmic_layers if cosmic else (),
        )
        loaded, selection = self.model.loaded, self.selection
        if cosmic not in self._unablated:
            self.release()  # first, so that two are never held
            self._unablated = {cosmic: measure_unablated(loaded, selection, settings)}
        return score_candidates(
            loaded,
            candidates,
            selection,
            settings,
            progress=self.model.progress,
            unablated=self._unablated[cosmic],
        )

    def release(self) -> None:
        """Forget what the model does as it is, which takes room on the device; it is measured again when needed."""
        self._unablated = {}

    def score_all(self) -> CandidateScores:
        """Every candidate of the extraction prompts, with COSMIC's cosines."""
        found = CandidateDirections.of_grid(self.directions(), positions=self.positions, layers=self.layers)
        return self.score(found, cosmic=True, discard_below=self.settings.discard_below)


FirstTokens = Sequence[tuple[int, bool]]
"""The first token of each answer that has one, and whether it is a refusal."""


def refusal_tokens_of(model: Measured, answers: FirstTokens, toward: str) -> list[TokenShares]:
    """The refusal tokens T of some answers (protocol §5): of one model, or pooled over the anchors of a study.

    Args:
        toward: the text that R2D2 trains towards, whose first token is always one of them.
    """
    inside = [token for token, refused in answers if refused]
    outside = [token for token, refused in answers if not refused]
    return refusal_token_shares(inside, outside, model.chat.answer_ids(toward)[0])


def stand_in(scores: CandidateScores, profile: Profile, *, early_discard: bool = False) -> int:
    """What stands in where no candidate is admissible: the one below the depth cut that both removes and induces most.

    That is the largest min(h − bypass, induce − s), in nats. Lowest bypass alone, or the sum of both, would take
    directions whose ablation breaks the model and which induce nothing. Where none has a score of induce, the lowest
    bypass; where `early_discard` left no candidate, over the prompts that all were scored on.

    Raises:
        InputError: no candidate is below the cut. NumericalError: none there has a finite score.
    """
    below = scores.layers < profile.depth_cut(scores.n_layers)
    if not below.any():
        raise InputError(
            f"no scored layer below the depth cut {profile.depth_cut(scores.n_layers)}",
            where="geometry.layer_stride",
            remedy="Score more layers.",
        )
    means = average(scores)
    bypass = np.where(below, means.bypass[0], np.nan)
    first = np.isfinite(scores.bypass).all(axis=0)  # prompts
    if early_discard and not np.isfinite(bypass).any() and first.any():
        bypass = np.where(below, scores.bypass[:, first].mean(axis=1), np.nan)
    if not np.isfinite(bypass).any():
        raise NumericalError(
            "no finite bypass score below the depth cut",
            where="candidate scores",
            remedy="Check the anchor's weights, or measure it in float32.",
        )
    both = np.minimum(means.h[0] - bypass, means.induce[0] - means.s[0])
    merit = both if np.isfinite(both).any() else -bypass
    return int(np.where(np.isfinite(merit), merit, -np.inf).argmax())


@dataclass(frozen=True)
class Site:
    """A place of the residual stream: the input of block `layer`, at `position` among the template tokens after the
    user's text (-1 is the last). `admissible`: a profile's carrier is there, not a stand-in."""

    layer: int
    position: int
    admissible: bool

    @property
    def columns(self) -> dict[str, Any]:
        """The columns by which tables name a site."""
        return {"layer": self.layer, "position": self.position, "site_admissible": self.admissible}


@dataclass(frozen=True)
class Chosen:
    """A profile's choice among scored candidates, and the site that is used: its own, or the stand-in's."""

    choice: CarrierChoice
    site: Site


def choose(
    scores: CandidateScores,
    profile: Profile,
    *,
    min_gap: float,
    refusal_rates: tuple[float, float],
    early_discard: bool = False,
) -> Chosen:
    """The carrier under a profile, or what stands in for it.

    Args:
        min_gap: nats. refusal_rates: of the model's answers to the harmful and the harmless selection prompts.

    Raises:
        InputError, NumericalError: nothing can even stand in (see `stand_in`).
    """
    harmful, harmless = refusal_rates
    choice = select(scores, profile, min_gap=min_gap, harmful_refusal=harmful, harmless_refusal=harmless)
    index = choice.best
    if index is None:
        index = stand_in(scores, profile, early_discard=early_discard)
    site = Site(int(scores.layers[index]), int(scores.positions[index]), choice.best is not None)
    return Chosen(choice, site)


@dataclass(frozen=True)
class Carrier:
    """A direction, its subspace and its site.

    >>> model.chat("How do I bake bread?", carrier.add(2.0))  # carrier: of `Run.carrier`, or of `Model.locate`

    Attributes:
        site: where it was taken.
        direction: r, not normalised.
        basis: orthonormal rows, strongest first, as many as asked for or as the per-category directions span; its
            first k rows are the rank-k subspace.
        contrast: a direction at the same site that has nothing to do with harm; empty where there is none.
    """

    site: Site
    direction: Float[Tensor, "d"]
    basis: Float[Tensor, "rank d"]
    contrast: Float[Tensor, "contrasts d"]

    def span(self, rank: int) -> Float[Tensor, "rank d"]:
        """Orthonormal rows: the direction itself at rank 1, above it the subspace's first rows."""
        return unit_row(self.direction) if rank == 1 else self.basis[:rank]

    def ablate(self, rank: int = 1, strength: float = 1.0) -> Ablate:
        """Removes the carrier from the stream at all blocks, while an answer is generated.

        Raises:
            InputError: the carrier has no subspace of this rank.
        """
        if rank not in self.ranks:
            raise InputError(f"no subspace of rank {rank}, only {max(self.ranks)}", where="carrier")
        return Ablate(self.span(rank)[None], torch.tensor([strength]))

    def add(self, alpha: float = 1.0) -> Add:
        """Adds α times the direction at the carrier's layer, while an answer is generated."""
        return Add(self.direction[None], torch.tensor([self.site.layer]), torch.tensor([alpha]))

    @property
    def ranks(self) -> frozenset[int]:
        """Ranks that there are: categories may span fewer dimensions than asked for."""
        return frozenset({1, *range(2, len(self.basis) + 1)})

    def __repr__(self) -> str:
        return f"Carrier({self.site}, ‖r‖ {float(self.direction.norm()):.3g}, ranks {sorted(self.ranks)})"


def carrier_at(
    activations: Activations, site: Site, labels: Sequence[str], rank: int, questions: Bool[Tensor, "prompts"]
) -> Carrier:
    """The direction and the rank-`rank` subspace at a site.

    Args:
        labels: category of each harmful prompt. questions: which harmless prompts are questions; the contrast is their
            mean minus that of the instructions, where there are two of either.
    """
    here = activations.at(site.layer, site.position)
    rows = category_directions(here.harmful, here.harmless, labels).rows
    contrast = torch.empty(0, rows.shape[-1])
    if min(int(questions.sum()), int((~questions).sum())) >= 2:
        contrast = mean_difference(here.harmless[questions], here.harmless[~questions]).float()[None]
    return Carrier(
        site=site,
        direction=mean_difference(here.harmful, here.harmless).float(),
        basis=subspace(rows, rank).basis.float().contiguous(),
        contrast=contrast,
    )


def unit_row(vector: Float[Tensor, "d"]) -> Float[Tensor, "1 d"]:
    """A direction as an orthonormal basis of one row."""
    return torch.nn.functional.normalize(vector.float(), dim=-1)[None]
