"""Token filter and sampling: what may stand in a suffix, and how substitutions are spread."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from caryatid.attacks.gcg import candidates
from caryatid.attacks.gcg.candidates import (
    Substitutions,
    allowed_token_ids,
    ordered_substitutions,
    topk_substitutions,
)
from caryatid.errors import NumericalError
from tiny import tiny_tokenizer


def sampled(
    gradient: torch.Tensor,
    suffix_ids: torch.Tensor,
    allowed: torch.Tensor,
    *,
    top_k: int,
    width: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """The first `width` suffixes in the order in which a step tries them."""
    order = ordered_substitutions(topk_substitutions(gradient, suffix_ids, allowed, top_k), generator)
    return Substitutions(order.positions[:width], order.tokens[:width]).apply(suffix_ids)


def test_allowed_tokens_are_printable_ascii_and_not_special() -> None:
    tokenizer = tiny_tokenizer()
    allowed = allowed_token_ids(tokenizer).allowed
    assert 0 < int(allowed.sum()) < len(tokenizer)
    control = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    assert len(control) >= 4
    assert not allowed[sorted(control)].any()
    for token in sorted(set(range(len(tokenizer))) - control):
        text = tokenizer.decode([token])
        printable = all(" " <= char <= "~" for char in text)
        if allowed[token]:
            assert printable, text
        elif printable:
            # What else is out cannot be reproduced from its text in any context.
            assert tokenizer(text, add_special_tokens=False)["input_ids"] != [token]


def test_every_printable_byte_of_a_byte_level_tokenizer_is_allowed() -> None:
    tokenizer = tiny_tokenizer()
    allowed = allowed_token_ids(tokenizer).allowed
    letters = tokenizer.convert_tokens_to_ids([chr(code) for code in range(33, 127)])
    assert allowed[letters].all()


def word_start_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that marks word starts with ▁ and drops the first one on decoding, as Llama 2's does."""
    words = ["<unk>", "▁", "!", "a", "b", "▁a", "▁b", "ab", "▁ab"]
    merges = [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁a", "b")]
    raw = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, merges, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    raw.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", clean_up_tokenization_spaces=False
    )


def test_continuations_of_a_word_start_tokenizer_are_allowed() -> None:
    tokenizer = word_start_tokenizer()
    found = allowed_token_ids(tokenizer)
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in ("a", "b", "ab", "▁a", "▁ab")}
    assert found.allowed[list(ids.values())].all()
    assert [bool(found.spaced[ids[word]]) for word in ids] == [False, False, False, True, True]


def test_mask_keeps_the_first_position_to_spaced_tokens_and_unused_rows_out() -> None:
    tokens = allowed_token_ids(tiny_tokenizer())
    mask = tokens.mask(vocabulary=450, positions=3, first_spaced=True)
    assert mask.shape == (3, 450)
    assert torch.equal(mask[0, :400], tokens.spaced)
    assert torch.equal(mask[1, :400], tokens.allowed)
    assert not mask[:, 400:].any()
    assert torch.equal(tokens.mask(400, 2, first_spaced=False)[0], tokens.allowed)


def test_topk_follows_the_negative_gradient_among_allowed_tokens() -> None:
    gradient = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    allowed = torch.rand(3, 50, generator=torch.Generator().manual_seed(1)) < 0.5
    suffix = torch.tensor([4, 5, 6])
    top = topk_substitutions(gradient, suffix, allowed, 5)
    for row in range(3):
        usable = [t for t in range(50) if allowed[row, t] and t != suffix[row]]
        assert top.ids[row].tolist() == sorted(usable, key=lambda t: float(gradient[row, t]))[:5]
    assert top.valid.all()


def test_topk_marks_what_is_not_allowed_when_too_few_are() -> None:
    allowed = torch.zeros(1, 10, dtype=torch.bool)
    allowed[0, [2, 3, 7]] = True
    top = topk_substitutions(torch.arange(10.0).unsqueeze(0), torch.tensor([3]), allowed, 5)
    assert top.ids[0][top.valid[0]].tolist() == [2, 7]


def test_a_gradient_that_is_not_finite_is_named() -> None:
    gradient = torch.zeros(1, 4)
    gradient[0, 1] = torch.nan
    with pytest.raises(NumericalError):
        topk_substitutions(gradient, torch.tensor([0]), torch.ones(1, 4, dtype=torch.bool), 2)


def test_substitutions_are_distinct_even_over_positions_and_complete() -> None:
    gradient = torch.randn(4, 60, generator=torch.Generator().manual_seed(0))
    top = topk_substitutions(
        gradient, torch.zeros(4, dtype=torch.long), torch.ones(4, 60, dtype=torch.bool), 8
    )
    order = ordered_substitutions(top, torch.Generator().manual_seed(3))
    pairs = list(zip(order.positions.tolist(), order.tokens.tolist(), strict=True))
    assert len(pairs) == len(set(pairs)) == 4 * 8
    assert set(pairs) == {(p, int(t)) for p in range(4) for t in top.ids[p]}
    for leading in (4, 8, 10, 31):
        counts = Counter(p for p, _ in pairs[:leading])
        assert max(counts.values()) - min(counts.values() if len(counts) == 4 else [0]) <= 1


def test_tokens_are_uniform_among_the_top_k() -> None:
    top = topk_substitutions(
        torch.arange(20.0).repeat(2, 1), torch.tensor([19, 19]), torch.ones(2, 20).bool(), 4
    )
    generator = torch.Generator().manual_seed(0)
    drawn: Counter[int] = Counter()
    for _ in range(2000):
        order = ordered_substitutions(top, generator)
        drawn.update(order.tokens[:2].tolist())
    assert set(drawn) == {0, 1, 2, 3}
    assert all(abs(count - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5 for count in drawn.values())


def test_candidates_differ_from_the_suffix_in_one_place() -> None:
    generator = torch.Generator().manual_seed(0)
    suffix = torch.tensor([1, 2, 3, 4, 5])
    gradient = torch.randn(5, 30, generator=generator)
    rows = sampled(
        gradient, suffix, torch.ones(5, 30, dtype=torch.bool), top_k=6, width=20, generator=generator
    )
    assert rows.shape == (20, 5)
    assert ((rows != suffix).sum(dim=1) == 1).all()
    assert len({tuple(row) for row in rows.tolist()}) == 20
    assert suffix.tolist() == [1, 2, 3, 4, 5]


def test_the_filter_is_kept_in_the_cache_and_read_by_another_process(
    filter_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = allowed_token_ids(tiny_tokenizer())
    (file,) = (filter_cache / "token-filters").iterdir()
    computed = candidates._token_filter
    monkeypatch.setattr(candidates, "_token_filter", lambda tokenizer: pytest.fail("computed again"))
    again = allowed_token_ids(tiny_tokenizer())  # another object, as in another process
    assert torch.equal(first.allowed, again.allowed)
    assert torch.equal(first.spaced, again.spaced)
    monkeypatch.setattr(candidates, "_token_filter", computed)
    other = allowed_token_ids(tiny_tokenizer(vocabulary=380))
    assert len(other.allowed) == 380
    assert len(list((filter_cache / "token-filters").iterdir())) == 2
    file.write_bytes(b"damaged")
    repaired = allowed_token_ids(tiny_tokenizer())
    assert torch.equal(first.allowed, repaired.allowed)
    assert file.stat().st_size > 400
    assert len(list((filter_cache / "token-filters").iterdir())) == 2


def test_a_cache_that_cannot_be_written_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr(candidates, "cache_dir", lambda: blocked)
    assert allowed_token_ids(tiny_tokenizer()).allowed.any()
