"""What is supervised, and that saving memory or bits changes nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from caryatid.attacks.gcg.layout import PromptLayout
from caryatid.data.chat import ChatExample
from caryatid.models.load import LoadedModel
from caryatid.models.template import ChatFormat
from caryatid.training.loop import chat_example
from caryatid.training.losses import sft_loss
from caryatid.training.ranks import ALONE, Ranks
from caryatid.training.settings import LoraSettings, TrainingSettings
from caryatid.training.trainee import Example, Trainee
from searching import suffix_gradient
from tiny import ARCHITECTURES, END, tiny_loaded, tiny_tokenizer

EXAMPLES = [Example([5, 9, 44], [7, 300]), Example([8, 21, 4, 90, 11, 3], [12]), Example([30], [6, 6, 2])]


def trainee_of(
    arch: str = "llama",
    mode: str = "lora",
    dtype: torch.dtype = torch.float32,
    ranks: Ranks = ALONE,
    **settings: object,
) -> Trainee:
    options = TrainingSettings(mode=mode, lora=LoraSettings(r=2, alpha=4), learning_rate=1e-2, **settings)  # type: ignore[arg-type]
    return Trainee(tiny_loaded(arch, dtype=dtype), options, updates=4, seed=0, ranks=ranks)


def trained(trainee: Trainee, updates: int = 3) -> list[torch.Tensor]:
    for _ in range(updates):
        with trainee.training():
            out = trainee.forward(EXAMPLES)
            trainee.backward(sft_loss(out.logits, out.targets), "test")
            trainee.update()
    return [value.detach().clone() for value in trainee.parameters]


def test_the_end_of_turn_is_supervised_where_it_is_also_the_filling() -> None:
    """pad = eos, as in the embedded backbone's tokenizer: masks come from lengths, never from ids."""
    plain = tiny_loaded()
    loaded = LoadedModel(
        plain.model, tiny_tokenizer(pad=END), "pad-eos", "pad-eos", plain.dtype, plain.device
    )
    chat = ChatFormat(loaded.tokenizer)
    assert loaded.tokenizer.pad_token_id == loaded.tokenizer.eos_token_id == chat.end_of_turn_ids[-1] == 2
    rows = [
        chat_example(chat, ChatExample("a", "Explain the tides", "The sea and the sun."), 200),
        chat_example(chat, ChatExample("b", "Please write", "A poem"), 200),
        chat_example(chat, ChatExample("c", "How?", "Cut off", complete=False), 200),
    ]
    assert [row.answer[-1] == 2 for row in rows] == [True, True, False]
    trainee = Trainee(loaded, TrainingSettings(lora=LoraSettings(r=2), learning_rate=1e-2), updates=1, seed=0)
    found = trainee.forward(rows)
    assert found.targets.tolist() == [token for row in rows for token in row.answer]
    assert found.lengths == [len(row.answer) for row in rows]
    parts = found.logits.split(found.lengths)
    for row, logits in zip(rows, parts, strict=True):
        alone = loaded.model(torch.tensor([[*row.prompt, *row.answer]])).logits[0, len(row.prompt) - 1 : -1]
        torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_gradient_checkpointing_changes_no_update(arch: str, mode: str) -> None:
    plain = trainee_of(arch, mode)
    saving = trainee_of(arch, mode, gradient_checkpointing=True)
    # Without dropout, so that the arithmetic alone is compared; test_room.py has it.
    for module in (*plain.model.modules(), *saving.model.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout") and isinstance(module.attention_dropout, float):
            module.attention_dropout = 0.0
    runs = [0, 0]
    for index, one in enumerate((plain, saving)):
        block = one.loaded.model.get_decoder() if arch != "gpt2" else one.loaded.model.transformer
        norm = next(m for n, m in block.named_modules() if n.endswith(("input_layernorm", "ln_1")))

        def count(module: object, args: object, index: int = index) -> None:
            runs[index] += 1

        norm.register_forward_pre_hook(count)
    for one, other in zip(trained(plain), trained(saving), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)
    assert runs == [3, 6]  # computed a second time on the way back


@contextmanager
def product_dtypes(model: nn.Module) -> Iterator[set[torch.dtype]]:
    """Precisions in which linear layers inside the blocks give their outputs."""
    seen: set[torch.dtype] = set()
    head = model.get_output_embeddings()  # type: ignore[operator]
    handles = [
        module.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head
    ]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("ranks", [ALONE, Ranks(0, 2)], ids=["alone", "one of two"])
def test_attacks_run_in_the_precision_of_training(mode: str, ranks: Ranks) -> None:
    trainee = trainee_of(mode=mode, ranks=ranks, mixed_precision="bf16")
    model = trainee.loaded.model
    with trainee.training(), product_dtypes(model) as seen:
        out = trainee.forward(EXAMPLES)
    assert seen == {torch.bfloat16}
    assert out.logits.dtype == torch.float32
    layout = PromptLayout((5, 9, 44), (7, 8), (3,), (12, 90))
    with product_dtypes(model) as seen, trainee.attacked():
        found = suffix_gradient(trainee.loaded, layout)
    assert seen == {torch.bfloat16}
    exact = suffix_gradient(tiny_loaded(), layout)
    assert found.gradient.dtype == torch.float32
    assert found.loss == pytest.approx(exact.loss, rel=3e-2)
    similar = nn.functional.cosine_similarity(found.gradient.flatten(), exact.gradient.flatten(), dim=0)
    assert similar > 0.99
    # The product with the embeddings is not rounded: it has more values than bfloat16 could tell apart.
    assert not torch.equal(found.gradient, found.gradient.bfloat16().float())
    with trainee.at_step_zero(), torch.no_grad():
        assert torch.isfinite(trainee.forward(EXAMPLES).logits).all()


def test_masters_stay_float32_and_learn_under_mixed_precision() -> None:
    for mode in ("lora", "full"):
        mixed, plain = trainee_of(mode=mode, mixed_precision="bf16"), trainee_of(mode=mode)
        before = [value.detach().clone() for value in mixed.parameters]
        after, exact = trained(mixed), trained(plain)
        moved = torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)])
        wanted = torch.cat([(a - b).flatten() for a, b in zip(exact, before, strict=True)])
        assert all(value.dtype == torch.float32 for value in after)
        assert nn.functional.cosine_similarity(moved, wanted, dim=0) > 0.8


@pytest.mark.parametrize("arch", ["mistral", "qwen2", "gpt2"])
def test_checkpointing_and_accumulation_of_16_bit_adapters(arch: str) -> None:
    """What the 7B preset does: recomputed layers give the same gradients, which add up over micro-batches."""
    found = []
    for saving in (False, True):
        trainee = trainee_of(arch, dtype=torch.bfloat16, gradient_checkpointing=saving)
        for module in trainee.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        for _ in range(2):
            with trainee.training():
                for rows in (EXAMPLES[:1], EXAMPLES[1:]):
                    out = trainee.forward(rows)
                    trainee.backward(sft_loss(out.logits, out.targets) / 2, "test")
                gradients = [value.grad.clone() for value in trainee.parameters if value.grad is not None]
                trainee.update()
        assert len(gradients) == len(trainee.parameters)
        assert all(value.dtype == torch.float32 for value in gradients)
        found.append([*gradients, *(value.detach().clone() for value in trainee.parameters)])
    assert any(bool(value.any()) for value in found[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)
