"""Geometry of an anchor: activations on the extraction prompts, and the scored bank of candidate directions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ...artifacts import Stage
from ...behaviour.judges.base import REFUSED
from ...causal.scores import CandidateDirections, ScoringSettings, SelectionPrompts, score_candidates
from ...errors import InputError
from ...geometry.bootstrap import most_likely
from ...geometry.carriers import UNDISCRIMINATING_ABOVE, CandidateScores
from ...geometry.cosmic import least_alike_layers
from ...geometry.directions import candidate_directions, refused_minus_answered
from ...geometry.profiles import depth_cut
from ...models.capture import capture_block_outputs
from ...models.forward import block_inputs
from ...models.layout import num_layers
from ...stats import bootstrap_indices
from ..carrier import plain_scores, profiles_of, read_bank, refusal_rates
from ..context import Context
from ..plan import AnchorRef, StagePlan

LIKELY_DRAWS = 1000  # resamples of the selection prompts over which the likeliest carriers are found


def activations(context: Context, entry: StagePlan, stage: Stage) -> Mapping[str, Any]:
    """Block inputs at the post-instruction positions, per prompt, float32: [prompts, layers, positions, d].

    Also names the layers that COSMIC compares: those where the two kinds of prompts are least alike.
    """
    assert entry.anchor is not None
    loaded = context.open(entry.anchor)
    chat = context.chat(loaded)
    count = 1 if context.config.geometry.positions == "last" else chat.n_post
    depth = num_layers(loaded.model)
    tensors, outputs = {}, []
    for side in ("harmful", "harmless"):
        prompts = getattr(context.prompts, f"extraction_{side}").prompts
        with capture_block_outputs(loaded.model, [depth - 1]) as captured:
            tensors[side] = block_inputs(
                loaded,
                chat.ids_many([row.user_text for row in prompts]),
                layers=range(depth),
                n_positions=count,
                batch_size=context.batch.forward,
            )
        # What block l puts out is the input of block l + 1; the last block's output goes to no block.
        last = captured.take().double().mean(dim=0).cpu()
        outputs.append(torch.cat([tensors[side][:, 1:, -1].double().mean(dim=0), last]))
    stage.write_tensors("activations.safetensors", tensors)
    return {
        "least_alike_layers": least_alike_layers(*outputs),
        "positions": count,
        "post_tokens": chat.post_tokens[-count:],
        "prompts": [len(t) for t in tensors.values()],
    }


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


def bank(context: Context, entry: StagePlan, stage: Stage) -> Mapping[str, Any]:
    """Bypass, induce and KL of every candidate, per selection prompt, and both cosines of COSMIC."""
    assert entry.anchor is not None
    scorer = _Scorer(context, entry.anchor)
    context.progress.start("candidate scores", scorer.cost(scorer.positions, scorer.layers))
    scores = scorer.score(
        scorer.directions(slice(None), slice(None)), scorer.cosmic_layers, scorer.config.discard_below
    )
    context.progress.done()
    tensors = {name: torch.from_numpy(value) for name, value in scores.arrays().items()}
    stage.write_tensors("scores.safetensors", tensors)
    facts: dict[str, Any] = {"n_layers": scores.n_layers, "candidates": len(scores), "gap": scores.gap}
    if refusal_rates(context, entry.anchor)[1] > UNDISCRIMINATING_ABOVE:
        facts["refused_minus_answered"] = _refused_minus_answered(scorer, stage)
    return facts


def _refused_minus_answered(scorer: "_Scorer", stage: Stage) -> str:
    """Where harmless prompts are refused too: the direction of those refused, minus those answered (protocol §5)."""
    prompts = scorer.sets.selection_harmless.prompts
    flags = torch.tensor([verdict in REFUSED for verdict in scorer.verdicts])
    values = block_inputs(
        scorer.loaded,
        scorer.chat.ids_many([row.user_text for row in prompts]),
        layers=scorer.layers,
        n_positions=len(scorer.positions),
        batch_size=scorer.context.batch.forward,
    )
    try:
        found = refused_minus_answered(
            values.transpose(1, 2), flags
        )  # [positions, layers, d], as directions are
    except InputError as error:
        return error.what
    stage.write_tensors("refused_minus_answered.safetensors", {"direction": found.float().contiguous()})
    cosines = torch.nn.functional.cosine_similarity(
        found, scorer.directions(slice(None), slice(None)), dim=-1
    )
    return f"cosine with the harmful-minus-harmless direction: {float(cosines.abs().max()):.2f} at most"


def reextract(context: Context, entry: StagePlan, stage: Stage) -> Mapping[str, Any]:
    """The likeliest carriers, with directions from resamples of the extraction prompts, scored anew.

    The resamples depend on the seed alone: they are the same prompts at every anchor. They are not drawn within
    categories, of which a sample of a few prompts has about as many: one prompt would always stand for itself.
    """
    assert entry.anchor is not None
    config = context.config.geometry
    scorer = _Scorer(context, entry.anchor)
    scores = read_bank(context, entry.anchor)
    kept = most_likely(
        scores,
        profiles_of(context.config),
        config.reextraction_candidates,
        draws=LIKELY_DRAWS,
        rng=np.random.default_rng(entry.anchor.seed),
        min_gap=config.min_gap,
    )
    mask = torch.zeros(len(scorer.positions), len(scorer.layers), dtype=torch.bool)
    for index in kept:
        mask[
            scorer.positions.index(int(scores.positions[index])),
            scorer.layers.index(int(scores.layers[index])),
        ] = True
    rng = np.random.default_rng(entry.anchor.seed)
    up, down = (
        bootstrap_indices(len(side), config.reextraction_resamples, rng)
        for side in (scorer.harmful, scorer.harmless)
    )
    compared = scorer.cosmic_layers if config.selector == "cosmic" else ()
    chunks = stage.chunks("resamples")
    done = len(chunks.load())
    context.progress.start(
        "re-extracted directions", config.reextraction_resamples * scorer.cost(range(1), range(len(kept)))
    )
    context.progress.advance(done * scorer.cost(range(1), range(len(kept))))
    for number in range(done, config.reextraction_resamples if len(kept) else 0):
        directions = scorer.directions(up[number], down[number]) * mask[..., None]
        found = scorer.score(directions, compared)
        chunks.append(number, plain_scores(found))
    context.progress.done()
    stage.write_json("resamples.json", chunks.load())
    return {"resamples": config.reextraction_resamples, "candidates": len(kept), "n_layers": scores.n_layers}


class _Scorer:
    """Scores banks of directions at one anchor, on the study's selection prompts."""

    def __init__(self, context: Context, ref: AnchorRef) -> None:
        config = context.config.geometry
        self.context, self.config, self.sets = context, config, context.prompts
        self.loaded = context.open(ref)
        self.chat = context.chat(self.loaded)
        captured = context.anchor_stage("activations", ref)
        stored = captured.read_tensors("activations.safetensors")
        self.cosmic_layers: list[int] = captured.manifest()["facts"]["least_alike_layers"]
        self.layers = scored_layers(num_layers(self.loaded.model), config.layer_stride, config.scored_depth)
        self.positions = list(range(-stored["harmful"].shape[2], 0))
        self.harmful, self.harmless = (stored[side][:, self.layers] for side in ("harmful", "harmless"))
        answers = context.anchor_stage("selection", ref).read_json("harmless.json")
        self.answers = [row["ids"] for row in answers]
        self.verdicts = [row["verdict"] for row in answers]

    def cost(self, positions: Sequence[int], layers: Sequence[int]) -> int:
        """Pairs of candidate and prompt: what progress counts."""
        prompts = len(self.sets.selection_harmful) + 2 * len(self.sets.selection_harmless)
        return len(positions) * len(layers) * prompts

    def directions(self, harmful: Any, harmless: Any) -> Float[torch.Tensor, "positions layers d"]:
        """Differences in means over the chosen rows of the extraction prompts."""
        return candidate_directions(self.harmful[harmful], self.harmless[harmless])

    def score(
        self,
        directions: Float[torch.Tensor, "positions layers d"],
        cosmic_layers: Sequence[int] = (),
        discard_below: float | None = None,
    ) -> CandidateScores:
        """Per-prompt scores; a direction of zeros is no candidate."""
        prompts = SelectionPrompts(
            harmful=self.chat.ids_many([row.user_text for row in self.sets.selection_harmful]),
            harmless=self.chat.ids_many([row.user_text for row in self.sets.selection_harmless]),
            answers=self.answers,
            refusal_tokens=self.context.stage("refusal_tokens").read_json("tokens.json")["ids"],
        )
        settings = ScoringSettings(
            batch_size=self.context.batch.forward,
            answer_tokens=self.config.answer_tokens,
            discard_below=discard_below,
            discard_after=self.config.discard_after,
            cosmic_layers=tuple(cosmic_layers),
        )
        candidates = CandidateDirections.of_grid(directions, positions=self.positions, layers=self.layers)
        return score_candidates(self.loaded, candidates, prompts, settings, progress=self.context.progress)
