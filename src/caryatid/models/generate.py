"""Batched decoding: greedy, or sampled with a seed."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from transformers import GenerationConfig, PreTrainedModel

from ..errors import InputError
from ..files import content_key
from ..keeping import piece
from ..progress import NO_PROGRESS, Progress
from .batch import RowLimit, batch_cost, left_pad, length_sorted_batches, with_backoff
from .chat_options import ChatOptions
from .forward import at_rows, check_context, check_rows, pad_id
from .heads import contiguous_head
from .load import LoadedModel
from .placement import devices_of
from .residual import Intervention, Touched, intervening
from .template import ChatFormat
from .thoughts import part_ids, stored
from .turns import Sent, SoftTokens, Turn, softened, turn_ids


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. The same seed and batch shape give the same answers.

    Attributes:
        temperature: above 0. top_p: share of probability kept, in (0, 1]. seed: of the draws.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0 or not 0 < self.top_p <= 1:
            raise InputError(
                f"temperature {self.temperature}, top_p {self.top_p}",
                where="sampling",
                remedy="Use a temperature above 0 and a top_p in (0, 1].",
            )


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded.

    Attributes:
        max_new_tokens: token limit of every answer. batch_size: answers at once. sampling: None: greedy.

    Raises:
        InputError: a limit below 1.
    """

    max_new_tokens: int
    batch_size: int
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(
                f"max_new_tokens is {self.max_new_tokens}, at least 1 is needed", where="generate"
            )


@dataclass(frozen=True)
class Completion:
    """An answer.

    Attributes:
        text: decoded without control tokens, surrounding white space removed: what follows the thought. Where thoughts
            are kept it stands before the answer between <think> and </think>; an unfinished one stands after <think>.
        ids: the generated tokens, including the one that ended the answer.
        n_tokens: how many these are.
        ended: the model ended its turn before the token limit.
        thought: what it thought before answering.
        unfinished: it was still thinking at the end: there is no answer to judge.
        spoken: those of `ids` that follow the thought and the white space after it; none where it is unfinished.
    """

    text: str
    ids: tuple[int, ...]
    n_tokens: int
    ended: bool
    thought: str = ""
    unfinished: bool = False
    spoken: tuple[int, ...] = ()

    def following(self, options: ChatOptions) -> tuple[int, ...]:
        """The tokens as they follow a prompt at whose positions is measured: without a thought that is stripped."""
        return self.spoken if options.thinking == "strip" else self.ids


def stop_ids(loaded: LoadedModel, chat: ChatFormat) -> frozenset[int]:
    """All tokens that end an answer: the template's end of turn, the tokenizer's and the model's end of text."""
    found = set(chat.stop_ids)
    for config in (loaded.model.generation_config, loaded.model.config.get_text_config()):
        named = getattr(config, "eos_token_id", None)
        found.update(named if isinstance(named, list | tuple) else [] if named is None else [named])
    return frozenset(int(token) for token in found) - chat.thought_ends


@contextmanager
def _plain_decoding(
    model: PreTrainedModel, stop: Iterable[int], pad: int, decoding: Decoding
) -> Iterator[None]:
    """Give the model a generation config with nothing but greedy decoding, or the sampling asked for.

    A checkpoint's own config may carry sampling settings, repetition penalties or length limits, and `generate`
    fills what a passed config leaves unset from it.
    """
    own, sampling = model.generation_config, decoding.sampling
    drawn: dict[str, Any] = {"do_sample": False}
    if sampling is not None:
        drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    model.generation_config = GenerationConfig(
        **drawn,
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=sorted(stop) or None,
        pad_token_id=pad,
        use_cache=True,
    )
    try:
        yield
    finally:
        model.generation_config = own


def _run_last(model: Any, made: Any, mask: Int[torch.Tensor, "rows prompt"]) -> None:
    """One more decoding step: the last column of what `generate` made goes through the model, nothing is sampled."""
    tokens = made.sequences[:, mask.shape[1] :]
    whole = torch.cat([mask, torch.ones_like(tokens)], dim=1)
    model(
        input_ids=tokens[:, -1:],
        attention_mask=whole,
        position_ids=whole.sum(dim=1, keepdim=True) - 1,
        past_key_values=made.past_key_values,
        use_cache=True,
    )


def _batch(
    loaded: LoadedModel,
    seqs: Sequence[Sequence[int]],
    rows: Sequence[int],
    *,
    ends: frozenset[int],
    interventions: Sequence[Intervention],
    touched: Touched | None,
    soft: Sequence[SoftTokens | None] | None,
) -> list[list[int]]:
    """Continuations of some of the token rows in one batch, as the model's generation config says."""
    batch = left_pad([seqs[row] for row in rows], pad_id(loaded), loaded.device)
    begins = [batch.ids.shape[1] - len(seqs[row]) for row in rows]
    with (
        contiguous_head(loaded.model),
        softened(loaded, [soft[row] if soft else None for row in rows], begins),
        intervening(loaded.model, *at_rows(interventions, rows)) as seen,
    ):
        model: Any = loaded.model
        made: Any = model.generate(
            input_ids=batch.ids, attention_mask=batch.mask, return_dict_in_generate=True
        )
        if touched is not None:
            _run_last(model, made, batch.mask)
    answers, filling = [], 0
    for tokens in made.sequences[:, batch.ids.shape[1] :].tolist():
        # Rows that ended early are filled up with pad, which may be a real token's id: cut at the end.
        last = next((i for i, token in enumerate(tokens) if token in ends), len(tokens) - 1)
        answers.append(tokens[: last + 1])
        filling += len(tokens) - last - 1
    if touched is not None:
        touched.add(seen, filling)
    return answers


@torch.no_grad()
def generate_ids(
    loaded: LoadedModel,
    seqs: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    stop: Iterable[int],
    interventions: Sequence[Intervention] = (),
    progress: Progress | None = None,
    touched: Touched | None = None,
    soft: Sequence[SoftTokens | None] | None = None,
) -> list[list[int]]:
    """Continuations of token rows, in input order, each up to and including its first token in `stop`.

    `soft`: of each row the embeddings that stand in place of some of its tokens, if any do.
    A sampling's seed does not touch the global random state. `touched` is given the tokens that the interventions acted
    on: all of every prompt and answer. Decoding samples the last token and stops, so that counting takes one more step
    per batch, which runs it too. Greedy batches are halved where memory runs out, and kept (`keeping`).

    Raises:
        InputError: an empty row, more tokens than the model has context, or interventions that do not fit.
    """
    check_rows(interventions, len(seqs))
    check_context(loaded, max((len(seq) for seq in seqs), default=0) + decoding.max_new_tokens)
    ends, pad, sampling = frozenset(stop), pad_id(loaded), decoding.sampling
    report = progress or NO_PROGRESS
    answers: list[list[int]] = [[] for _ in seqs]

    def batch(rows: Sequence[int]) -> list[list[int]]:
        return _batch(loaded, seqs, rows, ends=ends, interventions=interventions, touched=touched, soft=soft)

    limit = RowLimit(decoding.batch_size)
    keepable = sampling is None and touched is None and all(one is None for one in soft or ())

    def greedy(rows: list[int]) -> list[list[int]]:
        def in_parts(size: int) -> list[list[int]]:
            return [ids for start in range(0, len(rows), size) for ids in batch(rows[start : start + size])]

        made, size = with_backoff(in_parts, min(limit.rows, len(rows)))
        limit.rows = size if size < len(rows) else limit.rows
        return made

    kind = loaded.device.type
    devices = [] if kind == "cpu" else [one for one in devices_of(loaded.model) if one.type == kind]
    with (
        torch.random.fork_rng(devices, sampling is not None, device_type="cuda" if kind == "cpu" else kind),
        _plain_decoding(loaded.model, ends, pad, decoding),
    ):
        if sampling is not None:
            torch.manual_seed(sampling.seed)
        cost = batch_cost(loaded.device, decoding.max_new_tokens)
        for rows in length_sorted_batches([len(seq) for seq in seqs], decoding.batch_size, cost):
            if keepable:
                label = content_key([[list(seqs[row]) for row in rows], decoding.max_new_tokens])
                made = piece(label, partial(greedy, rows))
            else:
                made = batch(rows)
            for row, ids in zip(rows, made, strict=True):
                answers[row] = ids
            report.advance(len(rows))
    return answers


def generate(
    loaded: LoadedModel,
    chat: ChatFormat,
    user_texts: Sequence[Sent],
    decoding: Decoding,
    *,
    interventions: Sequence[Intervention] = (),
    progress: Progress | None = None,
    touched: Touched | None = None,
) -> list[Completion]:
    """Answers to users' texts, in input order; batches of similar length, padded on the left.

    Of a `Turn` with a beginning of the answer, the answer is what the model adds to it.
    Interventions have one row for all texts, or one row per text. `progress` advances by one per text.
    `touched` is given the tokens that they acted on, those of every prompt and every answer (see `generate_ids`).

    Raises:
        InputError: more tokens than the model has context, or interventions that do not fit.
    """
    stop = stop_ids(loaded, chat)
    answers = generate_ids(
        loaded,
        turn_ids(chat, user_texts),
        decoding,
        stop=stop,
        interventions=interventions,
        progress=progress,
        touched=touched,
        soft=[Turn.of(sent).soft for sent in user_texts],
    )
    return [_completion(loaded, chat, ids, stop) for ids in answers]


def _completion(loaded: LoadedModel, chat: ChatFormat, ids: list[int], stop: frozenset[int]) -> Completion:
    ended = ids[-1] in stop
    body = ids[:-1] if ended else ids  # by id: not every token that ends a turn is marked as a control token
    before = list(chat.end_of_turn_ids[:-1])
    if ended and before and body[-len(before) :] == before:
        body = body[: -len(before)]
    parts, begins = part_ids(loaded.tokenizer, body, chat.thoughts, chat.opens_thought)
    text = stored(parts, keep=chat.options.thinking == "keep")
    spoken = () if parts.unfinished else tuple(ids[begins:])
    return Completion(text, tuple(ids), len(ids), ended, parts.thought, parts.unfinished, spoken)
