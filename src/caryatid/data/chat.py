"""Chat data for the SFT term that all arms share: files, hub datasets, self-distilled answers, and their batches."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from ..errors import DataMissingError, InputError
from ..paths import hub_offline
from .near import normalise
from .prompts import Dropped, Prompt, PromptSet, Role, resolve_overlaps
from .readers import decode, encodable, parse_json, read_user_bytes


@dataclass(frozen=True)
class ChatExample:
    """One user turn and its answer.

    `complete` is False when the answer was cut off by a token limit, so that no end of turn follows it.
    """

    id: str
    user: str
    answer: str
    complete: bool = True

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"id": self.id, "user": self.user, "answer": self.answer, "complete": self.complete}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ChatExample":
        """The inverse of `to_json`."""
        return cls(value["id"], value["user"], value["answer"], value.get("complete", True))


@runtime_checkable
class Answered(Protocol):
    """A generated answer, and whether the model ended it itself."""

    @property
    def text(self) -> str: ...

    @property
    def ended(self) -> bool: ...


AnswerFn = Callable[[Sequence[str]], Sequence[str | Answered]]


class ChatOverlap(NamedTuple):
    """Chat examples that are no prompt of another role, and those that were."""

    examples: list[ChatExample]
    dropped: tuple[Dropped, ...]


class ChatSplit(NamedTuple):
    """Chat examples to train on, and held-out ones."""

    train: list[ChatExample]
    heldout: list[ChatExample]


def _message(turn: object, role: str) -> str | None:
    """The text of a turn if it is `role`'s."""
    if isinstance(turn, dict) and turn.get("role") == role and isinstance(turn.get("content"), str):
        content: str = turn["content"]
        return content
    return None


def _first_pair(messages: object) -> tuple[str, str] | None:
    """The first user turn and the assistant turn right after it; a system message before them is left out."""
    if not isinstance(messages, list):
        return None
    for turn, reply in itertools.pairwise(messages):
        user, answer = _message(turn, "user"), _message(reply, "assistant")
        if user is not None:
            return (user, answer) if answer is not None and user.strip() and answer.strip() else None
    return None


def _pair(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """Question and answer of a row with `user` and `answer`, or with `messages`; None if there is none."""
    if "messages" in row:
        return _first_pair(row["messages"])
    user, answer = row.get("user"), row.get("answer")
    if isinstance(user, str) and isinstance(answer, str) and user.strip() and answer.strip():
        return user, answer
    return None


def load_chat_jsonl(path: Path, n: int | None = None) -> list[ChatExample]:
    """Chat examples of a JSONL file, in order: `user` and `answer`, or `messages`, whose first exchange counts.

    Args:
        path: the file.
        n: at most so many rows; None: all.

    Raises:
        DataMissingError: no such file.
        InputError: a line that is no example (named by its number), or none at all.
    """
    examples: list[ChatExample] = []
    for number, line in enumerate(decode(read_user_bytes(path), path).split("\n"), start=1):
        if not line.strip():
            continue
        if n is not None and len(examples) == n:
            break
        row = parse_json(line, str(path), number)
        pair = _pair(row) if isinstance(row, dict) else None
        if pair is None:
            raise InputError(
                "no chat example",
                where=f"{path}:{number}",
                remedy='Give {"user": …, "answer": …}, or {"messages": [user turn, assistant turn, …]}.',
            )
        user, answer = (encodable(text, f"{path}:{number}") for text in pair)
        examples.append(ChatExample(f"{path.stem}_{number:06d}", user, answer))
    if not examples:
        raise InputError("no chat examples", where=str(path), remedy="Add lines, or choose another source.")
    return examples


def load_chat_dataset(name: str, split: str, n: int) -> list[ChatExample]:
    """The first `n` chat examples of a dataset that `datasets` loads (hub id or local folder).

    Rows are as in `load_chat_jsonl`; rows without a first exchange are passed over. Only as much is read as is
    needed, except offline, where the prepared copy in the datasets cache is used.

    Raises:
        InputError: `datasets` is not installed, no such split, or no usable row.
        DataMissingError: the dataset cannot be had.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            "chat data from a dataset needs the datasets library",
            where=name,
            remedy="Run `pip install 'caryatid[data]'`.",
        ) from error
    examples: list[ChatExample] = []
    try:
        rows: Iterable[Any] = datasets.load_dataset(name, split=split, streaming=not hub_offline())
        for number, row in enumerate(rows, start=1):
            pair = _pair(row)
            if pair is not None:
                examples.append(ChatExample(f"{split}_{number:06d}", *pair))
            if len(examples) == n:
                break
    except ValueError as error:
        raise InputError(
            f"split {split!r} cannot be loaded ({error})", where=name, remedy="Check the dataset's splits."
        ) from error
    except OSError as error:  # includes ConnectionError, FileNotFoundError and the library's own of both
        raise DataMissingError(
            f"dataset cannot be had ({error})",
            where=name,
            remedy="Check its name and the network, or use a JSONL file.",
        ) from error
    if not examples:
        raise InputError("no row has a user turn and an answer", where=name, remedy="Use another dataset.")
    return examples


def distill(prompts: Iterable[Prompt], answer_fn: AnswerFn) -> list[ChatExample]:
    """Self-distilled chat: the model's own answers to harmless prompts.

    Args:
        prompts: what is asked, as `Prompt.user_text`.
        answer_fn: answers to a list of user texts, in order; strings, or objects with `text` and `ended`.

    Returns:
        One example per prompt that got an answer with text in it.

    Raises:
        InputError: no answer at all.
    """
    asked = list(prompts)
    answers = answer_fn([prompt.user_text for prompt in asked])
    examples = []
    for prompt, given in zip(asked, answers, strict=True):
        text, complete = (given, True) if isinstance(given, str) else (given.text, given.ended)
        if text.strip():
            examples.append(ChatExample(prompt.id, prompt.user_text, text, complete))
    if not examples:
        raise InputError(
            "the backbone answers none of the chat prompts", remedy="Name chat data of your own."
        )
    return examples


def without_overlaps(examples: Sequence[ChatExample], sets: Iterable[PromptSet], source: str) -> ChatOverlap:
    """Leave out examples whose user turn is, nearly, a prompt of another set (roles never share a prompt).

    Args:
        examples: chat data from a file or dataset.
        sets: the study's prompt sets, without the chat sets that the examples replace.
        source: what the examples come from.

    Raises:
        InputError: nothing is left.
    """
    chat = _as_set(examples, source)
    others = list(sets)
    result = resolve_overlaps([*others, chat])
    kept = {prompt.id for prompt in result.sets[-1]}
    if not kept:
        raise InputError("every chat example is also a prompt of another role", where=source)
    dropped = tuple(row for row in result.dropped if row.set_name == chat.name)
    return ChatOverlap([one for one in examples if one.id in kept], dropped)


def refuse_overlaps(examples: Sequence[ChatExample], own: Mapping[str, PromptSet], path: Path) -> None:
    """Refuse a user's chat file that shares a prompt with another file of theirs.

    Raises:
        InputError: it does; lists the ids.
    """
    resolve_overlaps([*own.values(), _as_set(examples, str(path))], strict=True)


def _as_set(examples: Sequence[ChatExample], source: str) -> PromptSet:
    """The user turns of chat examples, as a set of training prompts."""
    return PromptSet(
        name="chat",
        role=Role.TRAINING,
        prompts=tuple(Prompt(one.id, one.user, source, "harmless") for one in examples),
        source=source,
        licence="user's own",
    )


def hold_out(examples: Sequence[ChatExample], rows: int, seed: int) -> ChatSplit:
    """Set `rows` examples apart; what is left to train on has no user turn in common with them.

    Args:
        examples: chat data.
        rows: examples held out.
        seed: of the generator that chooses them.

    Raises:
        InputError: nothing would be held out, or left to train on.
    """
    if rows < 1:
        raise InputError(
            f"nothing can be held out of {len(examples)} chat example(s)", remedy="Give at least two."
        )
    rng = np.random.default_rng(seed)
    chosen = set(rng.permutation(len(examples))[:rows].tolist())
    apart = {normalise(examples[i].user) for i in chosen}
    train = [one for one in examples if normalise(one.user) not in apart]
    if not train:
        raise InputError(
            f"{len(examples)} chat examples leave nothing to train on when {rows} are held out",
            remedy="Lower chat.heldout_rows, or give more examples.",
        )
    return ChatSplit(train, [examples[i] for i in sorted(chosen)])


def chat_batches(examples: Sequence[ChatExample], steps: int, batch_size: int, seed: int) -> list[list[int]]:
    """Indices of the examples of every micro-batch; a function of its arguments only, so the same for all arms.

    The examples are shuffled anew for every epoch and dealt out without a gap; a batch may span two epochs. The
    first batches do not depend on how many there are.

    Args:
        examples: chat data.
        steps: number of micro-batches.
        batch_size: examples in each.
        seed: of the generator that shuffles.

    Raises:
        InputError: no examples.
    """
    if not examples:
        raise InputError("no chat examples to train on", remedy="Name chat data, or raise the limit of chat.")
    rng = np.random.default_rng(seed)
    dealt: list[int] = []
    while len(dealt) < steps * batch_size:
        dealt.extend(rng.permutation(len(examples)).tolist())
    return [dealt[i * batch_size : (i + 1) * batch_size] for i in range(steps)]
