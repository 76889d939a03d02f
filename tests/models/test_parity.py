"""Cached = uncached, batched = single, left-padded = unpadded, hooks off = plain transformers.

In float32 on six architectures.
"""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from caryatid.errors import InputError
from caryatid.models import forward
from caryatid.models.directional import Ablate, Add, orthonormal
from caryatid.models.forward import AnswerBatch, answer_logprobs, block_inputs, last_logits
from caryatid.models.generate import Decoding, generate, generate_ids
from caryatid.models.residual import intervening
from caryatid.models.template import ChatFormat
from tiny import ARCHITECTURES, END, tiny_loaded, tiny_tokenizer

WIDTH = 32
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
TEXTS = ["How do I write a letter?", "Hi", "What is the capital of France? Explain it to the user.", "Please"]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompts(loaded) -> list[list[int]]:
    return ChatFormat(loaded.tokenizer).ids_many(TEXTS)


def plain(loaded, ids: list[int]) -> torch.Tensor:
    """Logits [tokens, vocab] as transformers gives them for one row, with nothing passed but the ids."""
    with torch.no_grad():
        return loaded.model(torch.tensor([ids])).logits[0].float()


def greedy(loaded, ids: list[int], steps: int, stop: set[int]) -> list[int]:
    """Greedy decoding without a cache, one whole row per step."""
    out: list[int] = []
    while len(out) < steps and not (out and out[-1] in stop):
        out.append(int(plain(loaded, [*ids, *out])[-1].argmax()))
    return out


def per_row(rows: int) -> list:
    basis = torch.stack([orthonormal(draw(2, WIDTH, seed=row)) for row in range(rows)])
    strength = torch.linspace(0.0, 1.5, rows)
    return [Ablate(basis, strength), Add(draw(rows, WIDTH), torch.arange(rows) % 4, strength)]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_batched_and_left_padded_equal_plain_transformers(arch: str) -> None:
    loaded = tiny_loaded(arch)
    seqs = prompts(loaded)
    expected = torch.stack([plain(loaded, ids)[-1] for ids in seqs])
    assert expected.std(dim=0).max() > 0.1  # rows differ, so order matters
    for size in (1, 3, 4):
        torch.testing.assert_close(last_logits(loaded, seqs, batch_size=size), expected, **CLOSE)
    reduced = last_logits(loaded, seqs, batch_size=3, reduce=lambda logits: logits.argmax(-1))
    assert reduced.tolist() == expected.argmax(-1).tolist()
    rows = last_logits(loaded, seqs, batch_size=3, reduce_rows=lambda logits, rows: rows)
    assert rows.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cached_equals_uncached(arch: str) -> None:
    loaded = tiny_loaded(arch)
    ids = prompts(loaded)[2]
    cache = DynamicCache(config=loaded.model.config)
    with torch.no_grad():
        parts = [
            loaded.model(torch.tensor([piece]), past_key_values=cache, use_cache=True).logits[0]
            for piece in (ids[:7], ids[7:8], ids[8:])
        ]
    torch.testing.assert_close(torch.cat(parts), plain(loaded, ids), **CLOSE)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_generation_equals_uncached_greedy_decoding(arch: str) -> None:
    """Left-padded, batched and cached against one row at a time without a cache."""
    loaded = tiny_loaded(arch, seed=3)
    chat = ChatFormat(loaded.tokenizer)
    seqs = prompts(loaded)
    expected = [greedy(loaded, ids, 10, set()) for ids in seqs]
    assert generate_ids(loaded, seqs, Decoding(10, 3), stop=()) == expected
    assert len({tuple(row) for row in expected}) > 1
    # The token that the first answer reaches in its middle now ends answers.
    end = expected[0][4]
    stopped = generate_ids(loaded, seqs, Decoding(10, 4), stop=(end,))
    assert stopped == [greedy(loaded, ids, 10, {end}) for ids in seqs]
    assert len(stopped[0]) <= 5
    answers = generate(loaded, chat, TEXTS, Decoding(10, 2))
    assert [list(answer.ids) for answer in answers] == [greedy(loaded, ids, 10, {2}) for ids in seqs]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_answer_logprobs_equal_whole_rows_scored_alone(arch: str) -> None:
    loaded = tiny_loaded(arch)
    seqs, answers = prompts(loaded), [[7, 8, 9], [30], [40, 2, 42, 43, 44], [5, 6]]
    expected = torch.full((4, 5), torch.nan)
    for row, (ids, answer) in enumerate(zip(seqs, answers, strict=True)):
        logprobs = plain(loaded, ids + answer).log_softmax(-1)
        for j, token in enumerate(answer):
            expected[row, j] = logprobs[len(ids) + j - 1, token]
    for size in (1, 3):
        found = answer_logprobs(loaded, seqs, answers, batch_size=size)
        torch.testing.assert_close(found, expected, equal_nan=True, **CLOSE)

    def check(batch: AnswerBatch) -> torch.Tensor:
        for row, mask, ids in zip(batch.rows.tolist(), batch.mask, batch.ids, strict=True):
            assert ids[mask].tolist() == answers[row]
        return batch.logits[:, 0]

    first = answer_logprobs(loaded, seqs, answers, batch_size=3, reduce=check)
    torch.testing.assert_close(first, last_logits(loaded, seqs, batch_size=3), **CLOSE)


def test_logits_of_long_answers_are_not_held_for_all_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded("llama")
    seqs, answers = prompts(loaded), [[7, 8, 9], [30], [40, 2, 42, 43, 44], [5, 6]]
    expected = answer_logprobs(loaded, seqs, answers, batch_size=4)
    shapes: list[tuple[int, int]] = []

    def watched(batch: AnswerBatch) -> torch.Tensor:
        shapes.append((batch.logits.shape[0], batch.logits.shape[1] + 1))
        return batch.token_logprobs()

    for room in (1, 8, 12):
        shapes.clear()
        monkeypatch.setattr(forward, "LOGITS_AT_ONCE", room * loaded.model.config.vocab_size)
        found = answer_logprobs(loaded, seqs, answers, batch_size=4, reduce=watched)
        torch.testing.assert_close(found, expected, equal_nan=True, **CLOSE)
        assert sum(rows for rows, _ in shapes) == 4
        assert all(rows == 1 or rows * width <= room for rows, width in shapes)
        assert (len(shapes) < 4) == (room > 1)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_interventions_per_row_equal_one_row_at_a_time(arch: str) -> None:
    loaded = tiny_loaded(arch)
    seqs = prompts(loaded)
    chat = ChatFormat(loaded.tokenizer)
    for intervention in per_row(4):
        together = last_logits(loaded, seqs, batch_size=3, interventions=[intervention])
        answers = generate(loaded, chat, TEXTS, Decoding(6, 3), interventions=[intervention])
        for row, ids in enumerate(seqs):
            alone = intervention.take(torch.tensor([row]))
            with intervening(loaded.model, alone):
                torch.testing.assert_close(together[row], plain(loaded, ids)[-1], **CLOSE)
                assert list(answers[row].ids) == greedy(loaded, ids, 6, {2})
        torch.testing.assert_close(together[0], plain(loaded, seqs[0])[-1], **CLOSE)  # its strength is zero
        assert (together[1:] - last_logits(loaded, seqs, batch_size=3)[1:]).abs().max() > 1e-2


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_block_inputs_equal_hidden_states_of_rows_alone(arch: str) -> None:
    loaded = tiny_loaded(arch)
    seqs = prompts(loaded)
    found = block_inputs(loaded, seqs, layers=[0, 3], n_positions=3, batch_size=3)
    assert found.shape == (4, 2, 3, WIDTH)
    for row, ids in enumerate(seqs):
        with torch.no_grad():
            states = loaded.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        for slot, layer in enumerate((0, 3)):
            torch.testing.assert_close(found[row, slot], states[layer][0, -3:], **CLOSE)


def test_a_pad_token_that_is_the_end_of_turn_changes_nothing() -> None:
    loaded = tiny_loaded("llama", seed=3)
    same = tiny_tokenizer(pad=END)
    assert same.pad_token_id == same.eos_token_id
    other = replace(loaded, tokenizer=same)
    first = generate(loaded, ChatFormat(loaded.tokenizer), TEXTS, Decoding(8, 4))
    second = generate(other, ChatFormat(same), TEXTS, Decoding(8, 4))
    assert first == second
    seqs = prompts(loaded)
    torch.testing.assert_close(
        last_logits(loaded, seqs, batch_size=4), last_logits(other, seqs, batch_size=4), **CLOSE
    )


def test_a_checkpoints_own_generation_settings_do_not_leak_and_are_kept() -> None:
    loaded = tiny_loaded("llama", seed=3)
    chat = ChatFormat(loaded.tokenizer)
    clean = generate(loaded, chat, TEXTS, Decoding(8, 4))
    own = GenerationConfig(
        do_sample=True,
        temperature=5.0,
        top_p=0.5,
        repetition_penalty=5.0,
        max_length=3,
        min_new_tokens=8,
        eos_token_id=2,
    )
    loaded.model.generation_config = own
    assert generate(loaded, chat, TEXTS, Decoding(8, 4)) == clean
    assert loaded.model.generation_config is own


def test_completions_report_their_end_and_their_length() -> None:
    loaded = tiny_loaded("llama", seed=3)
    chat = ChatFormat(loaded.tokenizer)
    free = generate(loaded, chat, TEXTS, Decoding(6, 4))
    assert [(c.n_tokens, c.ended, len(c.ids)) for c in free] == [(6, False, 6)] * 4
    # The model itself may name a further end of text.
    loaded.model.generation_config.eos_token_id = [2, free[0].ids[2]]
    first = generate(loaded, chat, TEXTS, Decoding(6, 4))[0]
    assert first.ended
    assert first.ids == free[0].ids[: first.n_tokens]
    assert first.n_tokens <= 3
    assert first.text == loaded.tokenizer.decode(first.ids[:-1], skip_special_tokens=True).strip()


def test_progress_counts_texts() -> None:
    class Counting:
        count = 0

        def start(self, label: str, total: int | None) -> None: ...
        def advance(self, n: int = 1) -> None:
            self.count += n

        def done(self) -> None: ...

    loaded, progress = tiny_loaded("gpt2"), Counting()
    generate(loaded, ChatFormat(loaded.tokenizer), TEXTS, Decoding(1, 3), progress=progress)
    assert progress.count == 4
    assert generate(loaded, ChatFormat(loaded.tokenizer), [], Decoding(1, 3)) == []


def test_inputs_that_do_not_fit_are_refused_and_leave_no_hook() -> None:
    loaded = tiny_loaded("llama")
    seqs, chat = prompts(loaded), ChatFormat(loaded.tokenizer)
    two_rows = per_row(2)
    with pytest.raises(InputError, match="2 rows for 4 inputs"):
        last_logits(loaded, seqs, batch_size=2, interventions=two_rows)
    with pytest.raises(InputError, match="2 rows for 4 inputs"):
        generate(loaded, chat, TEXTS, Decoding(2, 2), interventions=two_rows)
    with pytest.raises(InputError, match="max_new_tokens is 0"):
        generate(loaded, chat, TEXTS, Decoding(0, 2))
    with pytest.raises(InputError, match="no rows"):
        last_logits(loaded, [], batch_size=2)
    with pytest.raises(InputError, match="4 prompts for 1 answers"):
        answer_logprobs(loaded, seqs, [[1]], batch_size=2)
    with pytest.raises(InputError, match="empty"):
        answer_logprobs(loaded, seqs, [[1], [], [1], [1]], batch_size=2)
    with pytest.raises(InputError, match="fewer than 500"):
        block_inputs(loaded, seqs, layers=[0], n_positions=500, batch_size=2)

    def fail(logits: torch.Tensor) -> torch.Tensor:
        raise ValueError("in the caller's function")

    with pytest.raises(ValueError, match="caller"):
        last_logits(loaded, seqs, batch_size=2, interventions=per_row(4), reduce=fail)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in loaded.model.modules())
