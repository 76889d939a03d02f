"""The same candidates and gradients through nanoGCG's own code (release 0.3.0); it is no dependency of the package."""

from typing import Any

import pytest
import torch
from test_modes import layouts_of, substitutions

from caryatid.attacks.gcg.gradient import suffix_gradients
from caryatid.attacks.gcg.layout import PromptLayout, build_prefix_cache
from caryatid.attacks.gcg.scoring import SCORINGS, score_candidates
from caryatid.models.load import LoadedModel, load_model
from tiny import ARCHITECTURES, tiny_loaded

nanogcg: Any = pytest.importorskip(
    "nanogcg.gcg",
    reason="nanogcg is not installed (a peer for benchmarks: make bench, PYTHONPATH=build/bench)",
)


def nano(loaded: LoadedModel, layout: PromptLayout) -> Any:
    """nanoGCG's object, as its `run` prepares it, without its prefix cache."""
    config = nanogcg.GCGConfig(use_prefix_cache=False, verbosity="ERROR")
    peer = nanogcg.GCG(loaded.model, loaded.tokenizer, config)
    embed = loaded.model.get_input_embeddings()

    def one(ids: tuple[int, ...]) -> torch.Tensor:
        return torch.tensor([ids], dtype=torch.long)

    peer.target_ids = one(layout.target_ids)
    peer.before_embeds, peer.after_embeds = embed(one(layout.prefix_ids)), embed(one(layout.post_ids))
    peer.target_embeds = embed(peer.target_ids)
    return peer


@torch.no_grad()
def nano_losses(loaded: LoadedModel, layout: PromptLayout, rows: torch.Tensor) -> torch.Tensor:
    peer = nano(loaded, layout)
    parts = (
        peer.before_embeds,
        loaded.model.get_input_embeddings()(rows),
        peer.after_embeds,
        peer.target_embeds,
    )
    embeds = torch.cat([part.expand(len(rows), -1, -1) for part in parts], dim=1)
    losses: torch.Tensor = peer._compute_candidates_loss_original(4, embeds)
    return losses


def assert_equal_losses(loaded: LoadedModel, layouts: list[PromptLayout]) -> None:
    candidates = [substitutions(layout) for layout in layouts]
    expected = [nano_losses(loaded, layout, rows) for layout, rows in zip(layouts, candidates, strict=True)]
    prefix = build_prefix_cache(loaded, layouts)
    for scoring in SCORINGS:
        cache = None if scoring == "plain" else prefix
        found = score_candidates(loaded, layouts, candidates, batch_size=8, prefix=cache, scoring=scoring)
        for losses, exact in zip(found.losses, expected, strict=True):
            torch.testing.assert_close(losses, exact, rtol=1e-4, atol=0)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_losses_are_nanogcgs(arch: str) -> None:
    assert_equal_losses(tiny_loaded(arch), layouts_of())


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch != "gemma2"])
def test_gradients_are_nanogcgs(arch: str) -> None:
    """Except for Gemma 2, whose embedding module scales its rows: nanoGCG multiplies with the unscaled ones."""
    loaded = tiny_loaded(arch)
    for layout in layouts_of():
        exact = nano(loaded, layout).compute_token_gradient(torch.tensor([layout.suffix_ids]))[0]
        prefix = build_prefix_cache(loaded, [layout])
        (found,) = suffix_gradients(loaded, [layout], prefix=prefix, batch_size=1).cases
        torch.testing.assert_close(found.gradient, exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))


@pytest.mark.slow
def test_losses_are_nanogcgs_on_the_embedded_backbone() -> None:
    assert_equal_losses(load_model("embedded"), layouts_of(((17, 5, 3, 6),)))
