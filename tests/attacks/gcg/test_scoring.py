"""Losses and gradients against plain transformers, on six architectures."""

from collections.abc import Sequence

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from caryatid.attacks.gcg.gradient import suffix_gradients
from caryatid.attacks.gcg.layout import PromptLayout, build_prefix_cache
from caryatid.attacks.gcg.scoring import SCORINGS, score_candidates
from caryatid.errors import InputError
from caryatid.models.cache import prefix_cache_supported
from caryatid.models.load import LoadedModel
from searching import candidate_losses, suffix_gradient
from tiny import ARCHITECTURES, tiny_config, tiny_loaded


def random_layouts(seed: int = 0, vocabulary: int = 400) -> list[PromptLayout]:
    """Three cases that differ in every length."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(4, vocabulary, (n,), generator=generator).tolist())

    shapes = ((17, 5, 3, 6), (9, 5, 3, 2), (23, 4, 0, 4))
    return [PromptLayout(draw(a), draw(b), draw(c), draw(d)) for a, b, c, d in shapes]


def random_candidates(
    layouts: Sequence[PromptLayout], counts: Sequence[int] = (7, 4, 6)
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(4, 400, (n, len(layout.suffix_ids)), generator=generator)
        for n, layout in zip(counts, layouts, strict=True)
    ]


@torch.no_grad()
def plain_loss(loaded: LoadedModel, layout: PromptLayout, suffix: Sequence[int]) -> float:
    """Transformers' own loss over the target tokens of one unpadded row."""
    row = [*layout.prefix_ids, *suffix, *layout.post_ids, *layout.target_ids]
    ids = torch.tensor([row])
    labels = ids.clone()
    labels[:, : len(row) - len(layout.target_ids)] = -100
    return float(loaded.model(input_ids=ids, labels=labels).loss)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_losses_cached_uncached_and_batched_equal_plain_transformers(arch: str) -> None:
    loaded = tiny_loaded(arch)
    layouts = random_layouts()
    candidates = random_candidates(layouts)
    expected = [
        torch.tensor([plain_loss(loaded, layout, row) for row in rows.tolist()])
        for layout, rows in zip(layouts, candidates, strict=True)
    ]
    assert max(losses.std() for losses in expected) > 0.05  # the candidates are not all alike
    prefix = build_prefix_cache(loaded, layouts)
    assert prefix is not None
    for cache in (prefix, None):
        for batch_size in (1, 5, 64):
            scored = score_candidates(loaded, layouts, candidates, batch_size=batch_size, prefix=cache)
            for losses, exact in zip(scored.losses, expected, strict=True):
                torch.testing.assert_close(losses, exact, rtol=1e-4, atol=0)
    for layout, rows, exact in zip(layouts, candidates, expected, strict=True):
        for scoring in SCORINGS:
            losses = candidate_losses(loaded, layout, rows, batch_size=3, scoring=scoring)
            torch.testing.assert_close(losses, exact, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("arch", "window"), [("gemma2", 12), ("mistral", 10), ("gemma2", 31), ("gemma2", 40)]
)
def test_sliding_windows_shorter_than_the_row_do_without_the_prefix_cache(arch: str, window: int) -> None:
    loaded = tiny_loaded(arch)
    config = tiny_config(arch)
    config.sliding_window = window
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    loaded = LoadedModel(model, loaded.tokenizer, loaded.spec, loaded.identity, loaded.dtype, loaded.device)
    layouts = random_layouts()
    candidates = random_candidates(layouts)
    longest = max(len(layout.prefix_ids) for layout in layouts) + max(x.tail_length for x in layouts)
    prefix = build_prefix_cache(loaded, layouts)
    assert (prefix is None) == (window <= longest) == (not prefix_cache_supported(loaded, longest))
    scored = score_candidates(loaded, layouts, candidates, batch_size=8, prefix=prefix)
    for layout, rows, losses in zip(layouts, candidates, scored.losses, strict=True):
        exact = torch.tensor([plain_loss(loaded, layout, row) for row in rows.tolist()])
        torch.testing.assert_close(losses, exact, rtol=1e-4, atol=0)


def test_the_prefix_cache_is_shared_without_copies_and_never_grows() -> None:
    loaded = tiny_loaded("llama")
    layouts = random_layouts()
    candidates = random_candidates(layouts)
    prefix = build_prefix_cache(loaded, layouts)
    assert prefix is not None
    assert prefix.lengths == tuple(len(layout.prefix_ids) for layout in layouts)
    before = [(keys.clone(), values.clone()) for keys, values in zip(prefix.keys, prefix.values, strict=True)]
    for _ in range(3):
        score_candidates(loaded, layouts, candidates, batch_size=4, prefix=prefix)
        suffix_gradients(loaded, layouts, prefix=prefix, batch_size=2)
    for (keys, values), now_keys, now_values in zip(before, prefix.keys, prefix.values, strict=True):
        assert torch.equal(keys, now_keys)
        assert torch.equal(values, now_values)
    rows = prefix.rows([1, 1, 1, 1])
    lengths = rows.get_seq_length()
    assert lengths == len(layouts[1].prefix_ids)
    storage = prefix.keys[0].untyped_storage().data_ptr()
    assert rows.layers[0].keys.untyped_storage().data_ptr() == storage
    loaded.model(
        input_ids=torch.full((4, 3), 7),
        position_ids=torch.arange(lengths, lengths + 3).unsqueeze(0).expand(4, -1),
        past_key_values=rows,
        use_cache=True,
    )
    assert rows.get_seq_length() == lengths


def test_tokens_run_are_counted_without_padding() -> None:
    loaded = tiny_loaded("llama")
    layouts = random_layouts()
    candidates = random_candidates(layouts)
    run = [0]

    def count(module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        run[0] += kwargs["input_ids"].numel()

    handle = loaded.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        for index, layout in enumerate(layouts):  # alone, a case has no padding
            prefix = build_prefix_cache(loaded, [layout])
            assert prefix is not None
            for cache in (prefix, None):
                run[0] = 0
                scored = score_candidates(loaded, [layout], [candidates[index]], batch_size=4, prefix=cache)
                assert scored.tokens == run[0] > 0
    finally:
        handle.remove()
    together = score_candidates(
        loaded, layouts, candidates, batch_size=4, prefix=build_prefix_cache(loaded, layouts)
    )
    assert together.tokens == sum(
        len(rows) * layout.tail_length for rows, layout in zip(candidates, layouts, strict=True)
    )


def onehot_gradient(loaded: LoadedModel, layout: PromptLayout) -> torch.Tensor:
    """The definition: one-hot rows times the table that the embedding module gives, whole row, no cache."""
    embedding = loaded.model.get_input_embeddings()
    with torch.no_grad():
        table = embedding(torch.arange(400))
    onehot = functional.one_hot(torch.tensor(layout.suffix_ids), 400).to(table.dtype).requires_grad_(True)
    after = torch.tensor([*layout.post_ids, *layout.target_ids])
    before = torch.tensor(layout.prefix_ids)
    embeds = torch.cat([table[before], onehot @ table, table[after]]).unsqueeze(0)
    logits = loaded.model(inputs_embeds=embeds).logits[0]
    n = len(layout.target_ids)
    loss = functional.cross_entropy(logits[-n - 1 : -1].double(), torch.tensor(layout.target_ids))
    (gradient,) = torch.autograd.grad(loss, onehot)
    return gradient


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gradient_equals_the_onehot_definition(arch: str) -> None:
    loaded = tiny_loaded(arch, dtype=torch.float64)
    layouts = random_layouts()
    expected = [onehot_gradient(loaded, layout) for layout in layouts]
    prefix = build_prefix_cache(loaded, layouts)
    for cache in (prefix, None):
        for size in (1, 2, 3):
            found = suffix_gradients(loaded, layouts, prefix=cache, batch_size=size).cases
            for case, layout, exact in zip(found, layouts, expected, strict=True):
                torch.testing.assert_close(
                    case.gradient, exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max())
                )
                assert case.loss == pytest.approx(plain_loss(loaded, layout, layout.suffix_ids), rel=1e-5)
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt2"])
def test_gradient_predicts_small_changes_of_the_embeddings(arch: str) -> None:
    """Finite differences along random directions of the one-hot suffix."""
    loaded = tiny_loaded(arch, dtype=torch.float64)
    layout = random_layouts()[0]
    gradient = suffix_gradient(loaded, layout).gradient
    embedding = loaded.model.get_input_embeddings()
    row = torch.tensor([*layout.prefix_ids, *layout.suffix_ids, *layout.post_ids, *layout.target_ids])
    start, n = len(layout.prefix_ids), len(layout.target_ids)

    @torch.no_grad()
    def loss(change: torch.Tensor) -> float:
        embeds = embedding(row).clone()
        embeds[start : start + len(layout.suffix_ids)] += change @ embedding(torch.arange(400))
        logits = loaded.model(inputs_embeds=embeds.unsqueeze(0)).logits[0, -n - 1 : -1]
        return float(functional.cross_entropy(logits.double(), torch.tensor(layout.target_ids)))

    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        direction *= 1e-3 / direction.norm()
        slope = (loss(direction) - loss(-direction)) / 2
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=2e-2, abs=1e-7)


def test_bfloat16_losses_are_computed_in_float32() -> None:
    """Against float32 cross-entropy of the very logits that the model gave, on whatever device it runs."""
    loaded = tiny_loaded("llama", dtype=torch.bfloat16)
    layout = random_layouts()[0]
    candidates = random_candidates([layout], [5])[0]
    seen: list[torch.Tensor] = []
    handle = loaded.model.register_forward_hook(
        lambda module, args, output: seen.append(output.logits.detach())
    )
    losses = candidate_losses(loaded, layout, candidates, batch_size=5, scoring="plain")
    gradient = suffix_gradient(loaded, layout, use_cache=False)
    handle.remove()
    assert losses.dtype == gradient.gradient.dtype == torch.float32
    target = torch.tensor(layout.target_ids, device=loaded.device)
    for found, logits in zip((losses, torch.tensor([gradient.loss])), seen, strict=True):
        assert logits.dtype == torch.bfloat16
        per_row = logits.reshape(len(found), len(target), -1)
        exact = [functional.cross_entropy(row.float(), target) for row in per_row]
        torch.testing.assert_close(found.cpu(), torch.stack(exact).cpu(), rtol=1e-5, atol=0)
        rounded = [functional.cross_entropy(row, target).float() for row in per_row]
        assert not torch.allclose(found.cpu(), torch.stack(rounded).cpu(), rtol=1e-5, atol=0)


def test_no_candidates_cost_nothing() -> None:
    loaded = tiny_loaded("llama")
    layouts = random_layouts()
    candidates = [torch.empty(0, len(layout.suffix_ids), dtype=torch.long) for layout in layouts]
    scored = score_candidates(loaded, layouts, candidates, batch_size=4, prefix=None)
    assert [len(losses) for losses in scored.losses] == [0, 0, 0]
    assert scored.tokens == 0
    candidates[1] = torch.tensor([layouts[1].suffix_ids])
    scored = score_candidates(loaded, layouts, candidates, batch_size=4, prefix=None)
    assert [len(losses) for losses in scored.losses] == [0, 1, 0]


def test_memory_that_runs_out_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded("llama")
    layout = random_layouts()[0]
    candidates = random_candidates([layout], [9])[0]
    expected = candidate_losses(loaded, layout, candidates, batch_size=9)
    forward = loaded.model.forward

    def limited(*args: object, **kwargs: object) -> object:
        ids = kwargs["input_ids"]
        assert isinstance(ids, torch.Tensor)
        if len(ids) > 2:
            raise torch.OutOfMemoryError("no room")
        return forward(*args, **kwargs)

    monkeypatch.setattr(loaded.model, "forward", limited)
    prefix = build_prefix_cache(loaded, [layout])
    scored = score_candidates(loaded, [layout], [candidates], batch_size=8, prefix=prefix)
    assert scored.batch_size == 2
    torch.testing.assert_close(scored.losses[0], expected)


def test_a_case_needs_a_target_and_a_suffix() -> None:
    with pytest.raises(InputError):
        PromptLayout((1,), (), (2,), (3,))
    with pytest.raises(InputError):
        PromptLayout((1,), (1,), (2,), ())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_output_matrix_sees_contiguous_rows_and_no_hook_stays(arch: str) -> None:
    loaded = tiny_loaded(arch)
    layouts = random_layouts()
    head = loaded.model.get_output_embeddings()
    seen: list[bool] = []
    forward = head.forward

    def watching(rows: torch.Tensor) -> torch.Tensor:
        seen.append(rows.is_contiguous())
        return forward(rows)

    head.forward = watching
    try:
        score_candidates(loaded, layouts, random_candidates(layouts), batch_size=7, prefix=None)
        suffix_gradients(loaded, layouts, prefix=None, batch_size=3)
    finally:
        del head.forward
    assert seen
    assert all(seen)
    assert not head._forward_pre_hooks
