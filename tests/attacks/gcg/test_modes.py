"""Every way to score candidates against plain transformers, and the order in which models fall back."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from caryatid.attacks.gcg.gradient import suffix_gradients
from caryatid.attacks.gcg.layout import PromptLayout, build_prefix_cache
from caryatid.attacks.gcg.scoring import SCORINGS, Packing, Scoring, score_candidates, usable_scoring
from caryatid.attacks.gcg.tails import assemble_tails, first_changes
from caryatid.errors import InputError
from caryatid.models.cache import tree_attention_supported
from caryatid.models.load import LoadedModel, load_model
from tiny import ARCHITECTURES, tiny_loaded

SHAPES = ((17, 5, 3, 6), (9, 7, 3, 2), (23, 4, 0, 4))


def layouts_of(shapes: tuple[tuple[int, ...], ...] = SHAPES, seed: int = 0) -> list[PromptLayout]:
    """Cases that differ in every length."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(4, 400, (n,), generator=generator).tolist())

    return [PromptLayout(draw(a), draw(b), draw(c), draw(d)) for a, b, c, d in shapes]


def substitutions(layout: PromptLayout, seed: int = 1) -> torch.Tensor:
    """Two candidates per position, the present suffix itself, and one that changes everywhere; in random order."""
    generator = torch.Generator().manual_seed(seed)
    length = len(layout.suffix_ids)
    rows = torch.tensor(layout.suffix_ids).repeat(2 * length + 2, 1)
    for row in range(2 * length):
        rows[row, row // 2] = int(torch.randint(4, 400, (), generator=generator))
    rows[-1] = torch.randint(4, 400, (length,), generator=generator)
    return rows[torch.randperm(len(rows), generator=generator)]


@torch.no_grad()
def definition(model: nn.Module, layout: PromptLayout, suffix: list[int]) -> float:
    """GCG's loss as nanoGCG states it: mean cross-entropy of logits shifted by one over the target's tokens."""
    row = torch.tensor([[*layout.prefix_ids, *suffix, *layout.post_ids, *layout.target_ids]])
    logits = model(row).logits
    shift = row.shape[1] - len(layout.target_ids)
    return float(functional.cross_entropy(logits[0, shift - 1 : -1].float(), torch.tensor(layout.target_ids)))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_scoring_equals_the_definition(arch: str) -> None:
    loaded, layouts = tiny_loaded(arch), layouts_of()
    assert_every_scoring_equals_the_definition(loaded, layouts, sizes=((1, 16), (4, 40), (64, 1000)))


@pytest.mark.slow
def test_every_scoring_equals_the_definition_on_the_embedded_backbone() -> None:
    loaded, layouts = load_model("embedded"), layouts_of(((17, 4, 3, 6), (9, 5, 2, 3)))
    assert_every_scoring_equals_the_definition(loaded, layouts, sizes=((16, 40),))


def assert_every_scoring_equals_the_definition(
    loaded: LoadedModel, layouts: list[PromptLayout], sizes: tuple[tuple[int, int], ...]
) -> None:
    candidates = [substitutions(layout) for layout in layouts]
    expected = [
        torch.tensor([definition(loaded.model, layout, row) for row in rows.tolist()])
        for layout, rows in zip(layouts, candidates, strict=True)
    ]
    assert max(losses.std() for losses in expected) > 0.05
    prefix = build_prefix_cache(loaded, layouts)
    recorded = suffix_gradients(loaded, layouts, prefix=prefix, batch_size=2, record=True).suffix
    assert recorded is not None
    for scoring in SCORINGS:
        assert usable_scoring(loaded, layouts, prefix, scoring) == scoring
        for size, pack in sizes:
            for suffix in (None, recorded):
                scored = score_candidates(
                    loaded,
                    layouts,
                    candidates,
                    batch_size=size,
                    prefix=None if scoring == "plain" else prefix,
                    scoring=scoring,
                    suffix=suffix,
                    packing=Packing(pack),
                )
                for losses, exact in zip(scored.losses, expected, strict=True):
                    torch.testing.assert_close(losses, exact, rtol=1e-4, atol=0)


@pytest.mark.parametrize("scoring", ["incremental", "packed"])
def test_tokens_before_the_first_change_are_not_run(scoring: Scoring) -> None:
    loaded = tiny_loaded("llama")
    layout = layouts_of()[0]
    rows = substitutions(layout)
    skipped = first_changes(layout, rows)
    for row, skip in zip(rows.tolist(), skipped.tolist(), strict=True):
        differ = [i for i, (a, b) in enumerate(zip(row, layout.suffix_ids, strict=True)) if a != b]
        assert skip == (differ[0] if differ else len(row) - 1)
    prefix = build_prefix_cache(loaded, [layout])
    suffix = suffix_gradients(loaded, [layout], prefix=prefix, batch_size=1, record=True).suffix
    run = [0]

    def count(module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        run[0] += kwargs["input_ids"].numel()

    handle = loaded.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        scored = score_candidates(
            loaded,
            [layout],
            [rows],
            batch_size=1,
            prefix=prefix,
            scoring=scoring,
            suffix=suffix,
            packing=Packing(1000),
        )
    finally:
        handle.remove()
    assert scored.tokens == run[0] == len(rows) * layout.tail_length - int(skipped.sum())


def first_fit_decreasing(cases: list[int], lengths: list[int], tokens: int) -> list[list[int]]:
    """As the name says: each tail, longest first, into the first row of its case that has room."""
    rows: list[list[int]] = []
    for tail in sorted(range(len(cases)), key=lambda tail: -lengths[tail]):
        fits = (
            row
            for row in rows
            if cases[row[0]] == cases[tail] and sum(lengths[t] for t in row) + lengths[tail] <= tokens
        )
        row = next(fits, None)
        if row is None:
            rows.append(row := [])
        row.append(tail)
    return rows


def test_packed_rows_hold_tails_of_one_case_and_fit() -> None:
    loaded, layouts = tiny_loaded("llama"), layouts_of()
    candidates = [substitutions(layout) for layout in layouts]
    tails = assemble_tails(loaded, layouts, candidates, cached=True, incremental=True)
    packs = tails.packs(40)
    assert sorted(tail for pack in packs for tail in pack) == list(range(len(tails.cases)))
    cases, lengths = tails.cases.tolist(), tails.lengths.tolist()
    for pack in packs:
        assert len({cases[tail] for tail in pack}) == 1
        assert sum(lengths[tail] for tail in pack) <= 40
    assert sorted(map(sorted, packs)) == sorted(map(sorted, first_fit_decreasing(cases, lengths, 40)))
    batch = tails.packed(tails.pack(packs), 23, 7, torch.float32)
    # Each real place sees its position's worth of keys: prefix, unchanged suffix, its own tail up to itself.
    seen = (batch.mask == 0).sum(dim=-1).squeeze(1)
    for row, pack in enumerate(packs):
        at = 0
        for tail in pack:
            length = lengths[tail]
            positions = batch.positions[row, at : at + length]
            start = int(tails.prefix[tail] + tails.skipped[tail])
            assert positions.tolist() == list(range(start, start + length))
            assert torch.equal(seen[row, at : at + length], positions + 1)
            at += length


def test_recorded_suffix_keys_are_those_of_a_plain_forward() -> None:
    loaded, layouts = tiny_loaded("mistral"), layouts_of()
    prefix = build_prefix_cache(loaded, layouts)
    found = suffix_gradients(loaded, layouts, prefix=prefix, batch_size=2, record=True).suffix
    assert found is not None
    for case, layout in enumerate(layouts):
        row = torch.tensor([[*layout.prefix_ids, *layout.suffix_ids]])
        cache = loaded.model(row, use_cache=True).past_key_values
        n, start = len(layout.suffix_ids), len(layout.prefix_ids)
        for block, layer in enumerate(cache.layers):
            torch.testing.assert_close(
                found.keys[block][case, :, :n], layer.keys[0, :, start:], rtol=1e-4, atol=1e-5
            )
            torch.testing.assert_close(
                found.values[block][case, :, :n], layer.values[0, :, start:], rtol=1e-4, atol=1e-5
            )


def test_models_fall_back_by_name() -> None:
    loaded, layouts = tiny_loaded("llama"), layouts_of()
    prefix = build_prefix_cache(loaded, layouts)
    assert usable_scoring(loaded, layouts, None, "packed") == "plain"
    with pytest.raises(InputError, match="unknown scoring"):
        usable_scoring(loaded, layouts, prefix, "fast")  # type: ignore[arg-type]

    class Foreign(nn.Module):
        """Code of another library: whether it reads a ready mask is not known."""

        def __init__(self) -> None:
            super().__init__()
            self.config = loaded.model.config

    foreign = LoadedModel(Foreign(), loaded.tokenizer, "x", "x", loaded.dtype, loaded.device)  # type: ignore[arg-type]
    assert not tree_attention_supported(foreign)
    assert usable_scoring(foreign, layouts, prefix, "packed") == "incremental"
    gemma = tiny_loaded("gemma2")
    wide = layouts_of(((230, 5, 3, 6),))
    assert usable_scoring(gemma, wide, build_prefix_cache(gemma, wide), "packed") == "packed"
    wider = layouts_of(((240, 5, 3, 6),))
    kept = build_prefix_cache(gemma, wider)
    assert kept is not None
    assert usable_scoring(gemma, wider, kept, "packed") == "prefix"
    widest = layouts_of(((250, 5, 3, 6),))
    assert build_prefix_cache(gemma, widest) is None
    eager = replace(loaded, spec="eager")
    assert usable_scoring(eager, layouts, prefix, "packed") == "packed"


def test_memory_that_runs_out_shortens_packed_rows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded("llama")
    layout = layouts_of()[0]
    rows, prefix = substitutions(layout), build_prefix_cache(loaded, [layout])
    exact = torch.tensor([definition(loaded.model, layout, row) for row in rows.tolist()])
    forward = loaded.model.forward

    def limited(*args: object, **kwargs: object) -> object:
        ids = kwargs["input_ids"]
        assert isinstance(ids, torch.Tensor)
        if ids.numel() > 2 * layout.tail_length:
            raise torch.OutOfMemoryError("no room")
        return forward(*args, **kwargs)

    monkeypatch.setattr(loaded.model, "forward", limited)
    scored = score_candidates(
        loaded, [layout], [rows], batch_size=16, prefix=prefix, scoring="packed", packing=Packing(64)
    )
    assert scored.batch_size == 2
    torch.testing.assert_close(scored.losses[0], exact, rtol=1e-4, atol=0)
