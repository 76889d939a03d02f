"""The carrier that a study intervenes with at an anchor, and the activations at its site."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..causal.activations import at_site
from ..config import StudyConfig
from ..data.prompts import PromptSet
from ..errors import InputError, NumericalError
from ..geometry.carriers import PROFILES, CandidateScores, CarrierChoice, Profile, average, select
from ..geometry.directions import category_directions, mean_difference, subspace
from ..geometry.rank import SiteActivations
from .context import Context
from .plan import AnchorRef

UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class Carrier:
    """A direction, its subspace and its site.

    Attributes:
        choice: what the profile chose, or why it chose nothing.
        admissible: whether the profile admits it. When it admits nothing, the carrier is the candidate with the lowest
            bypass below the depth cut, so that there is something to intervene with, and every table says so.
        direction: r, not normalised.
        basis: orthonormal rows, strongest first, as many as the study's largest rank, or as the per-category directions
            span; its first k rows are the rank-k subspace.
    """

    choice: CarrierChoice
    admissible: bool
    position: int
    layer: int
    direction: Float[Tensor, "d"]
    basis: Float[Tensor, "rank d"]


def profile_of(config: StudyConfig, name: str | None = None) -> Profile:
    """The study's profile, or the one that is named, with its settings and the study's selector."""
    name = name or config.geometry.profile
    thresholds = getattr(config.geometry, name).model_dump()
    return Profile(name, **thresholds, selector=config.geometry.selector)


def profiles_of(config: StudyConfig) -> list[Profile]:
    """Every profile with its settings, the study's first."""
    names = dict.fromkeys((config.geometry.profile, *PROFILES))
    return [profile_of(config, name) for name in names]


def labels_of(prompts: PromptSet) -> list[str]:
    """The categories of extraction prompts."""
    return [row.category or UNLABELLED for row in prompts]


def refusal_rates(context: Context, ref: AnchorRef) -> tuple[float, float]:
    """Refusal rates of the anchor's answers to the harmful and to the harmless selection prompts."""
    facts = context.anchor_stage("selection", ref).manifest()["facts"]
    return float(facts["harmful_refusal_rate"]), float(facts["harmless_refusal_rate"])


def read_bank(context: Context, ref: AnchorRef) -> CandidateScores:
    """An anchor's scored bank."""
    stage = context.anchor_stage("bank", ref)
    arrays = {key: value.numpy() for key, value in stage.read_tensors("scores.safetensors").items()}
    return CandidateScores.from_arrays(arrays, int(stage.manifest()["facts"]["n_layers"]))


def read_resamples(context: Context, ref: AnchorRef) -> list[CandidateScores]:
    """Scores of the directions re-extracted from resampled prompts, one bank each; none where none were asked for."""
    if not context.config.geometry.reextraction_resamples:
        return []
    stage = context.anchor_stage("reextract", ref)
    n_layers = int(stage.manifest()["facts"]["n_layers"])
    return [scores_from_plain(row, n_layers) for row in stage.read_json("resamples.json")]


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


def choose(context: Context, ref: AnchorRef, scores: CandidateScores, profile: Profile) -> CarrierChoice:
    """The profile's choice among an anchor's scored candidates."""
    harmful, harmless = refusal_rates(context, ref)
    return select(
        scores,
        profile,
        min_gap=context.config.geometry.min_gap,
        harmful_refusal=harmful,
        harmless_refusal=harmless,
    )


def site_activations(context: Context, ref: AnchorRef, layer: int, position: int) -> SiteActivations:
    """An anchor's activations on the extraction prompts at one site; `position` −1 is the last token."""
    stored = context.anchor_stage("activations", ref).read_tensors("activations.safetensors")
    return at_site(stored["harmful"], stored["harmless"], layer, position)


def strongest(scores: CandidateScores, profile: Profile, *, early_discard: bool = False) -> int:
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
    bypass = np.where(below, average(scores).bypass[0], np.nan)
    first = np.isfinite(scores.bypass).all(axis=0)  # prompts
    if early_discard and not np.isfinite(bypass).any() and first.any():
        bypass = np.where(below, scores.bypass[:, first].mean(axis=1), np.nan)
    if not np.isfinite(bypass).any():
        raise NumericalError(
            "no finite bypass score below the depth cut",
            where="candidate scores",
            remedy="Check the anchor's weights, or measure it in float32.",
        )
    means = average(scores)
    both = np.minimum(means.h[0] - bypass, means.induce[0] - means.s[0])
    merit = both if np.isfinite(both).any() else -bypass
    return int(np.where(np.isfinite(merit), merit, -np.inf).argmax())


class Place(NamedTuple):
    """Where a carrier is read: at the profile's choice, or at the strongest candidate where it chooses none."""

    choice: CarrierChoice
    layer: int
    position: int


def carrier_place(context: Context, ref: AnchorRef, profile: Profile) -> Place:
    """The place of an anchor's carrier under a profile."""
    scores = read_bank(context, ref)
    choice = choose(context, ref, scores, profile)
    index = choice.best
    if index is None:
        index = strongest(scores, profile, early_discard=context.config.geometry.discard_below is not None)
    return Place(choice, int(scores.layers[index]), int(scores.positions[index]))


def find_carrier(context: Context, ref: AnchorRef) -> Carrier:
    """The carrier of an anchor under the study's profile."""
    choice, layer, position = carrier_place(context, ref, profile_of(context.config))
    site = site_activations(context, ref, layer, position)
    prompts = context.prompts.extraction_harmful
    rows = category_directions(site.harmful, site.harmless, labels_of(prompts)).rows
    config = context.config
    rank = max(config.geometry.rank, *config.causal.ranks, *config.causal.sweep_ranks)
    return Carrier(
        choice=choice,
        admissible=choice.best is not None,
        position=position,
        layer=layer,
        direction=mean_difference(site.harmful, site.harmless).float(),
        basis=subspace(rows, rank).basis.float(),
    )


def contrast_direction(
    context: Context, ref: AnchorRef, layer: int, position: int
) -> Float[Tensor, "d"] | None:
    """A contrast that has nothing to do with harm: mean over harmless questions − mean over harmless instructions.

    None when the extraction prompts have fewer than two of either.
    """
    harmless = site_activations(context, ref, layer, position).harmless
    asks = torch.tensor(
        [row.text.rstrip().endswith("?") for row in context.prompts.extraction_harmless.prompts]
    )
    if min(int(asks.sum()), int((~asks).sum())) < 2:
        return None
    return mean_difference(harmless[asks], harmless[~asks]).float()


def unit_row(vector: Float[Tensor, "d"]) -> Float[Tensor, "1 d"]:
    """A direction as an orthonormal basis of one row."""
    return torch.nn.functional.normalize(vector.float(), dim=-1)[None]
