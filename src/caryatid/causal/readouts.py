"""What a model does under each condition: teacher-forced scores for sweeps, generated answers for chosen points."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from caryatid.causal.answers import MEAN_KL, NLL, AnswerReference
from caryatid.causal.conditions import Condition, grouped, row_interventions
from caryatid.causal.grid import evaluate
from caryatid.causal.scores import refusal_tokens, score_reduce
from caryatid.errors import InputError
from caryatid.models.generate import Completion, generate
from caryatid.models.layout import num_layers
from caryatid.models.load import LoadedModel
from caryatid.models.template import ChatFormat
from caryatid.progress import Progress
from caryatid.stats import bootstrap_indices, quantile_interval, wilson


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

    def perplexity(self) -> Float[np.ndarray, "conditions"]:
        """exp of the token-weighted mean NLL."""
        return np.exp(self.nll @ self.answer_tokens / self.answer_tokens.sum())


def teacher_forced(
    loaded: LoadedModel,
    chat: ChatFormat,
    conditions: Sequence[Condition],
    harmful: Sequence[str],
    benign: Sequence[tuple[str, str]],
    tokens: Sequence[int],
    *,
    batch_size: int,
    answer_tokens: int = 32,
    complete: Sequence[bool] | None = None,
    progress: Progress | None = None,
) -> TeacherForced:
    """Refusal score on harmful prompts, and NLL and KL on benign (user text, answer) pairs, under every condition.

    Args:
        tokens: the refusal tokens T. answer_tokens: benign answers are cut here.
        complete: whether each benign answer is whole, so that its end of turn belongs to it; None: all are.
        progress: advances by one per pair of condition and prompt.

    Raises:
        InputError: nothing to measure, or conditions that do not fit the model.
    """
    if not conditions or not harmful or not benign:
        raise InputError(
            "conditions, harmful prompts and benign texts are all needed", where="teacher_forced"
        )
    reference = AnswerReference(
        loaded,
        chat.ids_many([user for user, _ in benign]),
        [
            chat.answer_ids(answer, end_of_turn=whole)
            for (_, answer), whole in zip(benign, complete or [True] * len(benign), strict=True)
        ],
        answer_tokens=answer_tokens,
        batch_size=batch_size,
    )
    refusal = refusal_scores(
        loaded, chat, conditions, harmful, tokens, batch_size=batch_size, progress=progress
    )
    working = [number for number, each in enumerate(conditions) if each.intervention != "none"]
    groups = grouped([conditions[number] for number in working], num_layers(loaded.model))
    along = evaluate(
        loaded,
        reference.seqs,
        [group.conditions for group in groups],
        reduce=reference.compare,
        keep=reference.keep,
        batch_size=batch_size,
        progress=progress,
    )
    compared = reference.base.repeat(len(conditions), 1, 1)  # what an untouched model gives is known already
    for group, values in zip(groups, along, strict=True):
        compared[[working[number] for number in group.members]] = values
    return TeacherForced(
        refusal=refusal,
        nll=compared[..., NLL].double().numpy(),
        kl=compared[..., MEAN_KL].double().numpy(),
        answer_tokens=reference.counts.cpu().double().numpy(),
    )


def refusal_scores(
    loaded: LoadedModel,
    chat: ChatFormat,
    conditions: Sequence[Condition],
    harmful: Sequence[str],
    tokens: Sequence[int],
    *,
    batch_size: int,
    progress: Progress | None = None,
) -> Float[np.ndarray, "conditions harmful"]:
    """Refusal score of every prompt under every condition. Arguments and errors as `teacher_forced`."""
    groups = grouped(conditions, num_layers(loaded.model))
    found = evaluate(
        loaded,
        chat.ids_many(harmful),
        [group.conditions for group in groups],
        reduce=score_reduce(refusal_tokens(loaded, tokens)),
        batch_size=batch_size,
        progress=progress,
    )
    scores = np.empty((len(conditions), len(harmful)))
    for group, values in zip(groups, found, strict=True):
        scores[group.members] = values.double().numpy()
    return scores


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
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        interventions=row_interventions(rows),
        progress=progress,
    )
    return [completions[start : start + len(texts)] for start in range(0, len(completions), len(texts))]


def rate_row(condition: Condition, read_out: str, values: Float[np.ndarray, "prompts"]) -> dict[str, object]:
    """A row of the contract's `causal` table from outcomes of 1, 0 and NaN, with a Wilson interval."""
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
    """A row of the contract's `causal` table from continuous scores, with a percentile bootstrap interval."""
    scored = values[np.isfinite(values)]
    row = {**condition.columns(), "read_out": read_out, "n": len(scored)}
    if len(scored) == 0:
        return {**row, "value": math.nan, "lo": math.nan, "hi": math.nan}
    sampled = scored[bootstrap_indices(len(scored), draws, rng)].mean(axis=1)
    return {**row, **quantile_interval(sampled, float(scored.mean()))._asdict()}
