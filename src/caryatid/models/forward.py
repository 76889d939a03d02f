"""Teacher-forced passes over token rows: next-token logits, answers' logits, block inputs. Results in input order."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import InputError
from .batch import PaddedBatch, batch_cost, left_pad, length_sorted_batches
from .capture import capture_block_inputs
from .heads import contiguous_head
from .load import LoadedModel
from .residual import Intervention, intervening

Reduce = Callable[[Float[Tensor, "batch vocab"]], Tensor]
ReduceRows = Callable[[Float[Tensor, "batch vocab"], Int[Tensor, "batch"]], Tensor]


LOGITS_AT_ONCE = 2**28  # float32 logits that the answers of one batch have: 1 GiB


class AnswerBatch(NamedTuple):
    """The logits that predict the answer tokens of one batch.

    Attributes:
        logits: float32; at [row, j] the prediction of answer token j.
        ids: answer token ids, filled up on the right with 0.
        mask: True at answer tokens, False at filling (whose logits mean nothing).
        rows: the batch's row numbers in the caller's lists, for looking up what belongs to each.
    """

    logits: Float[Tensor, "batch answer vocab"]
    ids: Int[Tensor, "batch answer"]
    mask: Bool[Tensor, "batch answer"]
    rows: Int[Tensor, "batch"]

    def token_logprobs(self) -> Float[Tensor, "batch answer"]:
        """Log-probability of each answer token; NaN at filling."""
        picked = self.logits.gather(-1, self.ids.unsqueeze(-1)).squeeze(-1) - self.logits.logsumexp(-1)
        return picked.masked_fill(~self.mask, torch.nan)


def pad_id(loaded: LoadedModel) -> int:
    """The token id that rows are padded with. Masks come from lengths, so that any id will do."""
    own = loaded.tokenizer.pad_token_id
    return 0 if own is None else int(own)


def check_rows(interventions: Sequence[Intervention], rows: int) -> None:
    """Check that every intervention has one row, or one per input.

    Raises:
        InputError: one has another number of rows.
    """
    for each in interventions:
        if each.rows not in (1, rows):
            raise InputError(
                f"{each.rows} rows for {rows} inputs",
                where=type(each).__name__,
                remedy="Give one row for all inputs, or one per input.",
            )


def check_context(loaded: LoadedModel, tokens: int) -> None:
    """Check that a row of `tokens` fits into the model's context length.

    Raises:
        InputError: it is longer.
    """
    longest = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and tokens > longest:
        raise InputError(
            f"a prompt and its answer may take {tokens} tokens, the model's context has {longest}",
            where=loaded.spec,
            remedy="Leave out the longest prompts, or lower the limit of new tokens.",
        )


def _batches(
    loaded: LoadedModel, seqs: Sequence[Sequence[int]], batch_size: int, kept: Sequence[int] | None = None
) -> Iterator[tuple[list[int], PaddedBatch]]:
    """Batches of rows of similar length; smaller ones where the logits of each row's `kept` last positions are many."""
    room = LOGITS_AT_ONCE // int(loaded.model.config.get_text_config().vocab_size)
    for batch in length_sorted_batches([len(seq) for seq in seqs], batch_size, batch_cost(loaded.device)):
        for rows in [batch] if kept is None else _split(batch, kept, room):
            yield rows, left_pad([seqs[row] for row in rows], pad_id(loaded), loaded.device)


def _split(rows: Sequence[int], kept: Sequence[int], room: int) -> list[list[int]]:
    """Consecutive rows in parts whose number times the largest `kept` is at most `room`, or of one row."""
    parts: list[list[int]] = []
    widest = 0
    for row in rows:
        widest = max(widest, kept[row])
        if not parts or (len(parts[-1]) + 1) * widest > room:
            parts.append([])
            widest = kept[row]
        parts[-1].append(row)
    return parts


def at_rows(interventions: Sequence[Intervention], rows: Sequence[int]) -> list[Intervention]:
    """The interventions of one batch's rows."""
    index = torch.tensor(rows)
    return [each.take(index) for each in interventions]


def batch_logits(loaded: LoadedModel, batch: PaddedBatch, keep: int) -> Float[Tensor, "batch keep vocab"]:
    """Float32 logits of the last `keep` positions; only these go through the output matrix. Gradients flow through."""
    with contiguous_head(loaded.model):
        out = loaded.model(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            position_ids=batch.position_ids,
            use_cache=False,
            logits_to_keep=keep,
        )
    logits: Tensor = out.logits
    return logits.float()


def _restore_order(parts: list[Tensor], order: list[int]) -> Tensor:
    joined = torch.cat(parts)
    back = torch.empty_like(joined)
    back[torch.tensor(order, device=joined.device)] = joined
    return back


@torch.no_grad()
def last_logits(
    loaded: LoadedModel,
    seqs: Sequence[Sequence[int]],
    *,
    batch_size: int,
    interventions: Sequence[Intervention] = (),
    reduce: Reduce | None = None,
    reduce_rows: ReduceRows | None = None,
) -> Tensor:
    """Logits of the token after each row, float32, [rows, vocab].

    With `reduce`, what it makes of each batch's logits [batch, …] instead, so that vocabulary-sized rows are not
    kept; `reduce_rows` is also given the batch's row numbers. Interventions have one row, or one per input.

    Raises:
        InputError: no rows, an empty row, or interventions that do not fit.
    """
    check_rows(interventions, len(seqs))
    parts, order = [], []
    for rows, batch in _batches(loaded, seqs, batch_size):
        with intervening(loaded.model, *at_rows(interventions, rows)):
            logits = batch_logits(loaded, batch, 1)[:, -1]
        if reduce is not None:
            logits = reduce(logits)
        elif reduce_rows is not None:
            logits = reduce_rows(logits, torch.tensor(rows, device=loaded.device))
        parts.append(logits)
        order += rows
    if not parts:
        raise InputError("no rows to score", where="last_logits")
    return _restore_order(parts, order)


@torch.no_grad()
def answer_logprobs(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    batch_size: int,
    interventions: Sequence[Intervention] = (),
    reduce: Callable[[AnswerBatch], Tensor] | None = None,
) -> Tensor:
    """Log-probability of each answer token after its prompt, [rows, longest answer], NaN beyond an answer's end.

    With `reduce`, what it makes of each `AnswerBatch` instead. Its result has the batch's rows first; a second
    dimension as long as the batch's longest answer is filled up with NaN to the longest of all.

    Raises:
        InputError: lists of different length, an empty prompt or answer, or interventions that do not fit.
    """
    if len(prompts) != len(answers) or not prompts:
        raise InputError(f"{len(prompts)} prompts for {len(answers)} answers", where="answer_logprobs")
    if min(map(len, answers)) == 0 or min(map(len, prompts)) == 0:
        raise InputError("a prompt or an answer is empty", where="answer_logprobs")
    longest = max(map(len, answers))
    seqs = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    check_rows(interventions, len(seqs))
    parts, order = [], []
    for rows, batch in _batches(loaded, seqs, batch_size, [len(answer) + 1 for answer in answers]):
        lengths = torch.tensor([len(answers[row]) for row in rows], device=loaded.device)
        width = int(lengths.max())
        with intervening(loaded.model, *at_rows(interventions, rows)):
            kept = batch_logits(loaded, batch, width + 1)  # the last one predicts beyond the answer
        column = torch.arange(width, device=loaded.device)
        mask = column < lengths.unsqueeze(1)
        source = torch.where(mask, column + width - lengths.unsqueeze(1), 0)  # answers end at the right edge
        logits = kept.gather(1, source.unsqueeze(-1).expand(-1, -1, kept.shape[-1]))
        ids = batch.ids[:, -width:].gather(1, source).masked_fill(~mask, 0)
        answer = AnswerBatch(logits, ids, mask, torch.tensor(rows, device=loaded.device))
        value = answer.token_logprobs() if reduce is None else reduce(answer)
        if value.ndim > 1 and value.shape[1] == width < longest:
            filling = value.new_full((len(rows), longest - width, *value.shape[2:]), torch.nan)
            value = torch.cat([value, filling], dim=1)
        parts.append(value)
        order += rows
    return _restore_order(parts, order)


@torch.no_grad()
def block_inputs(
    loaded: LoadedModel,
    seqs: Sequence[Sequence[int]],
    *,
    layers: Sequence[int],
    n_positions: int,
    batch_size: int,
    interventions: Sequence[Intervention] = (),
) -> Float[Tensor, "rows layers positions d"]:
    """The residual stream at the inputs of blocks `layers`, at each row's last `n_positions` tokens, float32 on CPU.

    Raises:
        InputError: a row shorter than `n_positions`, unknown layers, or interventions that do not fit.
    """
    if not seqs or min(map(len, seqs)) < n_positions:
        raise InputError(f"a row has fewer than {n_positions} tokens", where="block_inputs")
    check_rows(interventions, len(seqs))
    parts, order = [], []
    for rows, batch in _batches(loaded, seqs, batch_size):
        with (
            intervening(loaded.model, *at_rows(interventions, rows)),
            capture_block_inputs(loaded.model, layers, n_positions) as captured,
        ):
            batch_logits(loaded, batch, 1)
        parts.append(captured.stacked().cpu())
        order += rows
    return _restore_order(parts, order)
