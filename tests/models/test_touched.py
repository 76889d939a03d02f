"""Tokens that interventions touch in `generate`: prompt + generated, for answers that end and for those cut off."""

import pytest
import torch

from caryatid.models.batch import left_pad
from caryatid.models.generate import generate, generate_ids
from caryatid.models.residual import Ablate, Add, Intervention, Touched, intervening, orthonormal
from caryatid.models.template import ChatFormat
from tiny import ARCHITECTURES, tiny_loaded

TEXTS = ["tides", "How do I write a letter to the office?", "a poem", "What is the capital of France?", "sea"]
WIDTH, NEW = 32, 8


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def interventions() -> tuple[Intervention, ...]:
    """One for all rows, one with rows of its own."""
    layers = torch.tensor([0, 3, 1, 2, 1])
    return (
        Ablate(orthonormal(draw(2, WIDTH, seed=0)).unsqueeze(0)),
        Add(draw(len(TEXTS), WIDTH, seed=1), layers, draw(len(TEXTS), seed=2)),
    )


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_touched_tokens_are_the_prompts_and_the_generated_ones(arch: str) -> None:
    loaded = tiny_loaded(arch)
    chat, each = ChatFormat(loaded.tokenizer), interventions()
    prompts = chat.ids_many(TEXTS)
    endless = generate_ids(
        loaded, prompts, stop=(), max_new_tokens=NEW, batch_size=len(TEXTS), interventions=each
    )
    # A token that some answers reach before the limit, and others not: the end of turn of this test.
    end = next(token for row in endless for token in row[1:4] if not all(token in other for other in endless))
    loaded.model.generation_config.eos_token_id = end
    touched = Touched([])
    answers = generate(
        loaded, chat, TEXTS, max_new_tokens=NEW, batch_size=3, interventions=each, touched=touched
    )
    assert {answer.ended for answer in answers} == {True, False}
    assert len({answer.n_tokens for answer in answers}) > 1  # shorter answers were filled up
    # The end of turn is no part of the text; of a text cut off, the last token is never fed back.
    fed = [answer.n_tokens - 1 for answer in answers]
    assert all(answer.ids[-1] == end or answer.n_tokens == NEW for answer in answers)
    assert touched.per_intervention == [sum(map(len, prompts)) + sum(fed)] * 2

    alone = Touched([])
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        mine = [one.take(torch.tensor([row])) for one in each]
        with intervening(loaded.model, *mine) as seen, torch.no_grad():
            loaded.model(torch.tensor([[*prompt, *answer.ids[:-1]]]))
        alone.add(seen, 0)
    assert alone == touched


def test_a_plain_generate_also_counts_what_fills_up_finished_rows() -> None:
    loaded = tiny_loaded("llama")
    chat = ChatFormat(loaded.tokenizer)
    batch = left_pad(chat.ids_many(TEXTS), 0)
    made = loaded.model.generate(
        batch.ids, attention_mask=batch.mask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
    )
    end = int(made[0, -NEW + 1])
    idle = Ablate(interventions()[0].basis, torch.zeros(1))
    with intervening(loaded.model, idle) as seen:
        out = loaded.model.generate(
            batch.ids, attention_mask=batch.mask, max_new_tokens=NEW, do_sample=False, eos_token_id=end,
            pad_token_id=0,
        )  # fmt: skip
    assert seen.tokens == int(batch.mask.sum()) + len(TEXTS) * (out.shape[1] - batch.ids.shape[1] - 1)
