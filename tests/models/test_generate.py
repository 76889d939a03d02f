"""What decoding computes: one position per row and step, and no step after a batch's longest answer."""

from typing import Any

import pytest
import torch

from caryatid.errors import InputError
from caryatid.models.batch import batch_cost, length_sorted_batches
from caryatid.models.generate import Decoding, generate, generate_ids
from caryatid.models.template import ChatFormat
from tiny import ARCHITECTURES, tiny_loaded

TEXTS = ["tides", "How do I write a letter to the office?", "a poem", "What is the capital of France?", "sea"]
NEW, BATCH = 8, 3


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_only_last_positions_reach_the_output_matrix_until_the_longest_answer_ends(arch: str) -> None:
    loaded = tiny_loaded(arch)
    prompts = ChatFormat(loaded.tokenizer).ids_many(TEXTS)
    endless = generate_ids(loaded, prompts, Decoding(NEW, BATCH), stop=())
    batches = length_sorted_batches([len(ids) for ids in prompts], BATCH, batch_cost(loaded.device, NEW))
    ends = {
        endless[row][at] for at, row in enumerate(batches[0])
    }  # every answer of the first batch ends early
    seen: list[tuple[int, int]] = []

    def record(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.append((args[0].shape[0], args[0].shape[1]))

    handle = loaded.model.get_output_embeddings().register_forward_hook(record)
    try:
        answers = generate_ids(loaded, prompts, Decoding(NEW, BATCH), stop=ends)
    finally:
        handle.remove()
    longest = [max(len(answers[row]) for row in rows) for rows in batches]
    assert longest[0] <= BATCH < NEW
    assert seen == [
        (len(rows), 1) for rows, steps in zip(batches, longest, strict=True) for _ in range(steps)
    ]
    for answer, whole in zip(answers, endless, strict=True):
        last = next((at for at, token in enumerate(whole) if token in ends), NEW - 1)
        assert answer == whole[: last + 1]


def test_a_prompt_beyond_the_models_context_is_one_line_before_anything_runs() -> None:
    loaded = tiny_loaded("gpt2")  # learned positions: there is nothing beyond the last one
    chat = ChatFormat(loaded.tokenizer)
    with pytest.raises(InputError, match=r"may take \d+ tokens, the model's context has 512"):
        generate(loaded, chat, ["word " * 900], Decoding(1, 1))
    fits = len(chat.ids("hi"))
    assert generate(loaded, chat, ["hi"], Decoding(512 - fits, 1))[0].n_tokens <= 512 - fits
    with pytest.raises(InputError, match="may take 513 tokens"):
        generate(loaded, chat, ["hi"], Decoding(513 - fits, 1))
