"""Read-outs of a model under each condition: teacher-forced scores for all of them, generated answers for some."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ..errors import InputError
from ..models.generate import Completion, Decoding, generate
from ..models.layout import num_layers
from ..models.load import LoadedModel
from ..models.template import ChatFormat
from ..progress import Progress
from ..stats import bootstrap_indices, quantile_interval, wilson
from .answer_reference import MEAN_KL, NLL, AnswerReference
from .conditions import Condition, grouped, row_interventions
from .grid import evaluate_grid
from .scores import refusal_token_ids, score_reduce


class TeacherForced(NamedTuple):
    """Scores per condition and prompt, without any generation.

    Attributes:
        refusal: refusal score of each harmful prompt.
        nll: mean negative log-likelihood of each benign answer's tokens. kl: mean KL(base ‖ condition) along it.
        answer_tokens: tokens of each benign answer.
    """

    refusal: Float[np.ndarray, "conditions harmful"]
    nll: Float[np.ndarray, "conditions benign"]
    kl: Float[np.ndarray, "conditions benign"]
    answer_tokens: Float[np.ndarray, "benign"]


@dataclass(frozen=True)
class ReadOutPrompts:
    """What teacher-forced read-outs are measured on, as token rows in the model's chat format.

    Attributes:
        harmful: prompts whose refusal score is read. refusal_tokens: the set T.
        benign: prompts whose `answers` are followed, each cut at `answer_tokens` tokens.

    Raises:
        InputError: no harmful or no benign prompts.
    """

    harmful: Sequence[Sequence[int]]
    refusal_tokens: Sequence[int]
    benign: Sequence[Sequence[int]]
    answers: Sequence[Sequence[int]]
    answer_tokens: int = 32

    def __post_init__(self) -> None:
        if not self.harmful or not self.benign:
            raise InputError("harmful and benign prompts are both needed", where="teacher-forced read-outs")

    @classmethod
    def of_texts(
        cls,
        chat: ChatFormat,
        harmful: Sequence[str],
        refusal_tokens: Sequence[int],
        benign: Sequence[tuple[str, str]],
        *,
        complete: Sequence[bool] | None = None,
        answer_tokens: int = 32,
    ) -> "ReadOutPrompts":
        """From users' texts, and (user text, answer) pairs.

        Args:
            complete: whether each answer is whole, so that its end of turn belongs to it; None: all are.
        """
        whole = complete or [True] * len(benign)
        return cls(
            chat.ids_many(harmful),
            refusal_tokens,
            chat.ids_many([user for user, _ in benign]),
            [chat.answer_ids(text, end_of_turn=end) for (_, text), end in zip(benign, whole, strict=True)],
            answer_tokens,
        )


def teacher_forced(
    loaded: LoadedModel,
    conditions: Sequence[Condition],
    prompts: ReadOutPrompts,
    *,
    batch_size: int,
    progress: Progress | None = None,
) -> TeacherForced:
    """Refusal score on harmful prompts, and NLL and KL along benign answers, under every condition.

    Args:
        progress: advances by one per pair of condition and prompt.

    Raises:
        InputError: no conditions, an empty answer, or conditions that do not fit the model.
    """
    if not conditions:
        raise InputError("there are no conditions", where="teacher-forced read-outs")
    reference = AnswerReference(
        loaded, prompts.benign, prompts.answers, answer_tokens=prompts.answer_tokens, batch_size=batch_size
    )
    refusal = refusal_scores(
        loaded,
        conditions,
        prompts.harmful,
        prompts.refusal_tokens,
        batch_size=batch_size,
        progress=progress,
    )
    working = [number for number, each in enumerate(conditions) if each.row is not None]
    compared = reference.base.repeat(len(conditions), 1, 1)  # of an untouched model it is known already
    if working:
        compared[working] = evaluate_grid(
            loaded,
            reference.seqs,
            grouped([conditions[number] for number in working], num_layers(loaded.model)),
            reduce=reference.compare,
            keep=reference.keep,
            batch_size=batch_size,
            progress=progress,
        )
    return TeacherForced(
        refusal=refusal,
        nll=compared[..., NLL].double().numpy(),
        kl=compared[..., MEAN_KL].double().numpy(),
        answer_tokens=reference.counts.cpu().double().numpy(),
    )


def refusal_scores(
    loaded: LoadedModel,
    conditions: Sequence[Condition],
    harmful: Sequence[Sequence[int]],
    tokens: Sequence[int],
    *,
    batch_size: int,
    progress: Progress | None = None,
) -> Float[np.ndarray, "conditions harmful"]:
    """Refusal score of every prompt (a token row) under every condition; `tokens`: the refusal tokens T.

    Raises:
        InputError: nothing to measure, or conditions that do not fit the model.
    """
    scores = evaluate_grid(
        loaded,
        harmful,
        grouped(conditions, num_layers(loaded.model)),
        reduce=score_reduce(refusal_token_ids(loaded, tokens)),
        batch_size=batch_size,
        progress=progress,
    )
    return scores.double().numpy()


def generate_under(
    loaded: LoadedModel,
    chat: ChatFormat,
    conditions: Sequence[Condition],
    texts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress | None = None,
) -> list[list[Completion]]:
    """Greedy answers to every text under every condition, [condition][text]; conditions share batches."""
    rows = [condition for condition in conditions for _ in texts]
    completions = generate(
        loaded,
        chat,
        [text for _ in conditions for text in texts],
        Decoding(max_new_tokens, batch_size),
        interventions=row_interventions(rows),
        progress=progress,
    )
    return [completions[start : start + len(texts)] for start in range(0, len(completions), len(texts))]


def rate_row(condition: Condition, read_out: str, values: Float[np.ndarray, "prompts"]) -> dict[str, object]:
    """A row of a run's `causal` table from outcomes of 1, 0 and NaN, with a Wilson interval."""
    scored = values[~np.isnan(values)]
    rate = wilson(int(scored.sum()), len(scored))
    return {**condition.columns(), "read_out": read_out, **rate._asdict()}


def mean_row(
    condition: Condition,
    read_out: str,
    values: Float[np.ndarray, "prompts"],
    *,
    draws: int,
    rng: np.random.Generator,
) -> dict[str, object]:
    """A row of a run's `causal` table from continuous scores, with a percentile bootstrap interval."""
    scored = values[np.isfinite(values)]
    row = {**condition.columns(), "read_out": read_out, "n": len(scored)}
    if len(scored) == 0:
        return {**row, "value": math.nan, "lo": math.nan, "hi": math.nan}
    sampled = scored[bootstrap_indices(len(scored), draws, rng)].mean(axis=1)
    return {**row, **quantile_interval(sampled, float(scored.mean()))._asdict()}
