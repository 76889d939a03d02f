"""Tiny trainees and drawn cases for tests of arms beside R2D2."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from caryatid.models.layout import decoder_layers
from caryatid.models.template import ChatFormat
from caryatid.training.arm_settings import CatSettings, LatSettings
from caryatid.training.perturb import EMBEDDING
from caryatid.training.settings import LoraSettings, R2D2Settings, TrainingSettings
from caryatid.training.trainee import DrawnCases, Example, Trainee
from tiny import tiny_loaded

NAMES = ("cat", "lat", "circuit_breakers", "dpo")
SETTINGS = TrainingSettings(
    lora=LoraSettings(r=2, alpha=4),
    learning_rate=1e-2,
    chat_batch_size=2,
    accumulation=1,
    max_length=64,
    r2d2=R2D2Settings(pool=3, cases=2, gcg_steps=0, suffix_length=3),
    cat=CatSettings(steps=3, radius=0.2, rate=0.5),
    lat=LatSettings(steps=3, radius=0.3, depths=(0.25, 0.75)),
)
REFUSAL = "Sorry, I can't do that."


def trainee_of(arch: str = "llama", settings: TrainingSettings = SETTINGS, moved: float = 0.0) -> Trainee:
    """A trainee whose adapters have moved a little from step 0."""
    trainee = Trainee(tiny_loaded(arch), settings, updates=10, seed=0)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in trainee.parameters:
            parameter += moved * torch.randn(parameter.shape, generator=generator)
    return trainee


def drawn_of(trainee: Trainee) -> DrawnCases:
    """Two requests of different length with targets of different length, and two chat rows."""
    chat = ChatFormat(trainee.loaded.tokenizer)
    refusal = chat.answer_ids(REFUSAL)
    asked = [("do harm", "Sure, here is harm"), ("explain how to do the theft", "Yes, theft")]
    said = [("tell me about tea", "tea is nice."), ("the sun?", "Yes, it is.")]
    return DrawnCases(
        [Example(chat.ids(text), chat.answer_ids(target, end_of_turn=False)) for text, target in asked],
        [Example(chat.ids(text), refusal) for text, _ in asked],
        [Example(chat.ids(text), chat.answer_ids(answer)) for text, answer in said],
    )


@contextmanager
def shifted(model: Any, deltas: dict[int, Tensor]) -> Iterator[None]:
    """Adds to the embeddings (−1) and to block inputs, by hooks of the test's own; of one row."""
    handles = []

    def padded(hidden: Tensor, delta: Tensor) -> Tensor:
        return torch.cat([hidden[:, : len(delta)] + delta, hidden[:, len(delta) :]], dim=1)

    for place, delta in deltas.items():
        if place == EMBEDDING:
            module = model.get_input_embeddings()
            handles.append(module.register_forward_hook(lambda m, a, out, d=delta: padded(out, d)))
        else:
            block = decoder_layers(model)[place]
            handles.append(block.register_forward_pre_hook(lambda m, a, d=delta: (padded(a[0], d), *a[1:])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def logprobs(model: Any, row: Example) -> Tensor:
    """Log-probabilities [answer, vocab] at the answer's positions; one row, no padding."""
    logits = model(torch.tensor([[*row.prompt, *row.answer]])).logits[0].float()
    return logits[len(row.prompt) - 1 : -1].log_softmax(-1)


def entropy_sum(model: Any, row: Example) -> Tensor:
    return -logprobs(model, row).gather(1, torch.tensor(row.answer)[:, None]).sum()


def tokens(rows: list[Example]) -> int:
    return sum(len(row.answer) for row in rows)
