"""Held-out chat perplexity: how well a model still predicts benign answers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.chat import ChatExample
from ..errors import InputError, NumericalError
from ..models.forward import answer_logprobs
from ..models.load import LoadedModel
from ..models.template import ChatFormat
from ..stats import Interval, bootstrap_interval

_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True)
class Perplexity:
    """Perplexity over the tokens of all answers.

    Attributes:
        nll: nats of each example, in input order. counts: its answer tokens, end of turn included.
    """

    nll: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.nll)

    @property
    def tokens(self) -> int:
        """Number of answer tokens."""
        return sum(self.counts)

    @property
    def value(self) -> float:
        """exp(Σ nll / Σ tokens)."""
        return self._over(np.arange(self.n))

    def interval(self, rng: np.random.Generator, draws: int = 1000) -> Interval:
        """The value with a percentile bootstrap interval over examples."""
        return bootstrap_interval(self._over, self.n, draws, rng)

    def _over(self, index: NDArray[np.int64]) -> float:
        mean = np.asarray(self.nll)[index].sum() / np.asarray(self.counts)[index].sum()
        return math.exp(min(_LARGEST_EXPONENT, float(mean)))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"value": self.value, "n": self.n, "nll": list(self.nll), "counts": list(self.counts)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(tuple(value["nll"]), tuple(value["counts"]))


def heldout_perplexity(
    loaded: LoadedModel, chat: ChatFormat, examples: Sequence[ChatExample], *, batch_size: int
) -> Perplexity:
    """Perplexity of the examples' answers under the model, token-weighted.

    The end of turn counts as an answer token unless the example's answer was cut off.

    Raises:
        InputError: no examples.
        NumericalError: a log-probability is not finite.
    """
    if not examples:
        raise InputError("no chat examples to take a perplexity of", where="perplexity")
    prompts = chat.ids_many([example.user for example in examples])
    answers = [chat.answer_ids(example.answer, end_of_turn=example.complete) for example in examples]
    sums = answer_logprobs(
        loaded,
        prompts,
        answers,
        batch_size=batch_size,
        reduce=lambda batch: torch.where(batch.mask, batch.token_logprobs().double(), 0.0).sum(dim=1),
    )
    nll = [-float(value) for value in sums.cpu()]
    bad = next((row for row, value in enumerate(nll) if not math.isfinite(value)), None)
    if bad is not None:
        raise NumericalError(
            "a log-probability is not finite", where=f"perplexity of chat example {examples[bad].id}"
        )
    return Perplexity(tuple(nll), tuple(len(answer) for answer in answers))
