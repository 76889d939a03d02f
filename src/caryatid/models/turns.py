"""What a model is sent: a user's text and, for attacks that are more than a text, what stands beyond it."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from .load import LoadedModel
from .template import ChatFormat


@dataclass(frozen=True)
class SoftTokens:
    """Embeddings in place of consecutive tokens of a templated prompt; plain values, so that JSON holds them.

    Attributes:
        start: the first token that is replaced, counted from the prompt's beginning. count: how many are.
        data: the embeddings [count, d] as float32, little-endian, in base64.
    """

    start: int
    count: int
    data: str

    @classmethod
    def of(cls, start: int, vectors: Float[Tensor, "count d"]) -> "SoftTokens":
        """These vectors in place of the tokens from `start` on."""
        values = vectors.detach().float().cpu().numpy().astype("<f4")
        return cls(start, len(values), base64.b64encode(values.tobytes()).decode())

    @property
    def vectors(self) -> Float[Tensor, "count d"]:
        """The embeddings."""
        values = np.frombuffer(base64.b64decode(self.data), dtype="<f4")
        return torch.from_numpy(values.reshape(self.count, -1).copy())


@dataclass(frozen=True)
class Turn:
    """A user's text, the beginning of the answer that the model only goes on with, and embeddings in place of tokens.

    Attributes:
        text: what the user says. begun: how the answer begins; what the model adds is its answer.
        soft: in place of some of the prompt's tokens, so that what the model reads is no text.
    """

    text: str
    begun: str = ""
    soft: SoftTokens | None = None

    @classmethod
    def of(cls, sent: "str | Turn") -> "Turn":
        """A text as a turn; a turn as it is."""
        return cls(sent) if isinstance(sent, str) else sent

    @property
    def form(self) -> str:
        """`text`, `begun answer` or `embeddings`: what has to be sent."""
        return "embeddings" if self.soft is not None else "begun answer" if self.begun else "text"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


Sent = str | Turn
"""A text, or what is more than one."""


def soft_from_json(value: Mapping[str, Any] | None) -> SoftTokens | None:
    """Soft tokens from the values of `asdict`; None stays None."""
    return None if value is None else SoftTokens(**value)


def plain_text(sent: Sent, where: str) -> str:
    """The text, of what is nothing but text.

    Raises:
        InputError: it is more than a text.
    """
    turn = Turn.of(sent)
    if turn.form != "text":
        raise InputError(
            f"an attack of the form “{turn.form}” is no text, and cannot be written as one",
            where=where,
            remedy="Send it with caryatid itself: evaluate --cases reads what attack --json prints.",
        )
    return turn.text


def turn_ids(chat: ChatFormat, sent: Sequence[Sent]) -> list[list[int]]:
    """The tokens that an answer follows: each templated prompt, and the beginning of the answer where there is one."""
    turns = [Turn.of(one) for one in sent]
    prompts = chat.asked_ids_many([turn.text for turn in turns])
    return [
        [*ids, *chat.answer_ids(turn.begun, end_of_turn=False)] if turn.begun else ids
        for ids, turn in zip(prompts, turns, strict=True)
    ]


@contextmanager
def softened(loaded: LoadedModel, rows: Sequence[SoftTokens | None], begins: Sequence[int]) -> Iterator[None]:
    """While open, the first forward pass reads the soft tokens of its rows.

    Args:
        rows: one entry a row of the batch. begins: the column at which each row's prompt begins.
    """
    if not any(rows):
        yield
        return
    waiting = True

    def replace(module: torch.nn.Module, args: tuple[Any, ...], embedded: Tensor) -> Tensor | None:
        nonlocal waiting
        if not waiting:
            return None
        waiting = False
        changed = embedded.clone()
        for row, (soft, begin) in enumerate(zip(rows, begins, strict=True)):
            if soft is not None:
                first = begin + soft.start
                changed[row, first : first + soft.count] = soft.vectors.to(changed)
        return changed

    handle = loaded.model.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
