"""Tokens that interventions touch in `generate`: prompt + generated, for answers that end and for those cut off."""

from collections.abc import Sequence

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from caryatid.models.batch import left_pad
from caryatid.models.capture import capture_block_outputs
from caryatid.models.directional import Ablate, Add, orthonormal
from caryatid.models.generate import Decoding, generate, generate_ids
from caryatid.models.load import LoadedModel
from caryatid.models.residual import Intervention, Touched, intervening
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


def after_last_tokens(loaded: LoadedModel, each: Sequence[Intervention], seqs: list[list[int]]) -> Tensor:
    """What the last block puts out under interventions at the last token of each row, run alone and at once."""
    with capture_block_outputs(loaded.model, [3]) as kept, torch.no_grad():
        for row, seq in enumerate(seqs):
            with intervening(loaded.model, *(one.take(torch.tensor([row])) for one in each)):
                loaded.model(torch.tensor([seq]))
        return kept.take()[:, 0]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_last_token_is_run_at_its_place_in_the_answer(arch: str) -> None:
    """The step that counting adds sees the cache, the mask and the positions of the answers it follows."""
    loaded, each = tiny_loaded(arch), interventions()
    prompts = ChatFormat(loaded.tokenizer).ids_many(TEXTS)
    with capture_block_outputs(loaded.model, [3]) as kept:
        answers = generate_ids(
            loaded, prompts, Decoding(NEW, len(TEXTS)), stop=(), interventions=each, touched=Touched([])
        )  # fmt: skip
        last = kept.take()[-len(TEXTS) :, 0]
    order = sorted(range(len(TEXTS)), key=lambda row: -len(prompts[row]))  # rows of the one batch
    alone = after_last_tokens(loaded, each, [[*p, *a] for p, a in zip(prompts, answers, strict=True)])
    torch.testing.assert_close(last, alone[order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_touched_tokens_are_the_prompts_and_the_generated_ones(arch: str) -> None:
    loaded = tiny_loaded(arch)
    chat, each = ChatFormat(loaded.tokenizer), interventions()
    prompts = chat.ids_many(TEXTS)
    endless = generate_ids(loaded, prompts, Decoding(NEW, len(TEXTS)), stop=(), interventions=each)
    # A token that some answers reach before the limit, and others not: the end of turn of this test.
    end = next(token for row in endless for token in row[1:4] if not all(token in other for other in endless))
    loaded.model.generation_config.eos_token_id = end
    touched = Touched([])
    answers = generate(loaded, chat, TEXTS, Decoding(NEW, 3), interventions=each, touched=touched)
    assert {answer.ended for answer in answers} == {True, False}
    assert len({answer.n_tokens for answer in answers}) > 1  # shorter answers were filled up
    assert all(answer.ids[-1] == end or answer.n_tokens == NEW for answer in answers)
    assert touched.per_intervention == [sum(map(len, prompts)) + sum(a.n_tokens for a in answers)] * 2
    uncounted = generate(loaded, chat, TEXTS, Decoding(NEW, 3), interventions=each)
    assert uncounted == answers  # counting changes nothing

    alone = Touched([])
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        mine = [one.take(torch.tensor([row])) for one in each]
        with intervening(loaded.model, *mine) as seen, torch.no_grad():
            loaded.model(torch.tensor([[*prompt, *answer.ids]]))
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


def test_filling_is_not_counted_through_a_peft_wrapper() -> None:
    """Its `generate` calls the model inside, not the wrapper, which alone a hook on the wrapper would see."""
    loaded = tiny_loaded("llama")
    batch = left_pad(ChatFormat(loaded.tokenizer).ids_many(TEXTS), 0)
    assert not bool(batch.mask.all())
    wrapped = get_peft_model(
        loaded.model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    with intervening(wrapped, interventions()[0]) as seen, torch.no_grad():
        wrapped.generate(input_ids=batch.ids, attention_mask=batch.mask, max_new_tokens=1, pad_token_id=0)
    assert seen.tokens == int(batch.mask.sum())
