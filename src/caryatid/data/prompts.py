"""Prompts, prompt sets, and the rule that roles never share a prompt (protocol §2)."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal, NamedTuple, Self

from ..errors import InputError
from .near import Fingerprint, NearIndex, normalise

Label = Literal["harmful", "harmless"]
LISTED_IDS = 12


class Role(StrEnum):
    """What a prompt set is used for, highest precedence first."""

    EVALUATION = "evaluation"
    SELECTION = "selection"
    EXTRACTION = "extraction"
    TRAINING = "training"

    @property
    def precedence(self) -> int:
        """0 for the role that keeps its rows; larger roles drop theirs."""
        return list(Role).index(self)


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        id: unique in its set; the benchmark's own where it has one.
        text: the request.
        set_name: the named set or file it comes from.
        label: whether a well-behaved model should refuse.
        category: topic (HarmBench semantic category, StrongREJECT category, …).
        kind: HarmBench functional category (standard, contextual, copyright) or XSTest type.
        context: HarmBench context string.
        targets: affirmative beginnings for attacks.
        check: what a good answer contains: `any`, `all`, `not` (lists of strings), `regex`; case-insensitive.
        answer: an answer that came with the prompt.
    """

    id: str
    text: str
    set_name: str
    label: Label
    category: str | None = None
    kind: str | None = None
    context: str | None = None
    targets: tuple[str, ...] = ()
    check: Mapping[str, Any] | None = field(default=None, hash=False)
    answer: str | None = None

    @property
    def user_text(self) -> str:
        """What the user sends: HarmBench's own form with the context first, else the text."""
        return f"{self.context}\n\n---\n\n{self.text}" if self.context else self.text

    @property
    def key(self) -> str:
        """Normalised text, plus the normalised context string where there is one."""
        text = normalise(self.text)
        return f"{text} | {normalise(self.context)}" if self.context else text

    @property
    def fingerprint(self) -> Fingerprint:
        """What near-duplicates are found by."""
        return Fingerprint.of(self.text, self.context)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; empty fields are left out."""
        values: dict[str, Any] = {
            "id": self.id,
            "text": self.text,
            "set": self.set_name,
            "label": self.label,
            "category": self.category,
            "kind": self.kind,
            "context": self.context,
            "targets": list(self.targets) or None,
            "check": dict(self.check) if self.check is not None else None,
            "answer": self.answer,
        }
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        rest = {name: value.get(name) for name in ("category", "kind", "context", "check", "answer")}
        return cls(
            id=value["id"],
            text=value["text"],
            set_name=value["set"],
            label=value["label"],
            targets=tuple(value.get("targets", ())),
            **rest,
        )


def _rank(*parts: object) -> str:
    """A fixed pseudo-random rank: the SHA-256 of `parts`, the same on every platform and in every version."""
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()


@dataclass(frozen=True)
class PromptSet:
    """Prompts that are used together.

    Attributes:
        name: the field of the study, or the named set.
        role: what it is used for.
        prompts: in the order of the source.
        source: the named set, file or embedded set they come from.
        licence: of the source.
        sha256: of the source file that holds the prompts.

    Raises:
        InputError: two prompts share an id.
    """

    name: str
    role: Role
    prompts: tuple[Prompt, ...]
    source: str
    licence: str
    sha256: str | None = None

    def __post_init__(self) -> None:
        twice = [name for name, count in Counter(prompt.id for prompt in self.prompts).items() if count > 1]
        if twice:
            raise InputError(
                f"ids used twice: {_listing(twice)}",
                where=self.source,
                remedy="Give every prompt its own id.",
            )

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __getitem__(self, index: int) -> Prompt:
        return self.prompts[index]

    @property
    def texts(self) -> tuple[str, ...]:
        """What the user sends, prompt by prompt (`Prompt.user_text`)."""
        return tuple(prompt.user_text for prompt in self.prompts)

    def subsample(self, n: int, seed: int) -> "PromptSet":
        """`n` prompts in the set's order, spread over kinds and categories in proportion; all of them if n = 0.

        A systematic sample: prompts are put in order of kind, category and a pseudo-random rank that `seed` and
        the prompt's text determine, and every len/n-th is taken from a start that `seed` determines. Each kind
        and category so gets its share to within one prompt.
        """
        if n <= 0 or n >= len(self):
            return self
        order = sorted(
            range(len(self)),
            key=lambda i: (self[i].kind or "", self[i].category or "", _rank(seed, self[i].key, self[i].id)),
        )
        start = int(_rank(seed, self.name)[:8], 16) / 16**8
        chosen = sorted(order[int((i + start) * len(self) / n)] for i in range(n))
        return replace(self, prompts=tuple(self.prompts[i] for i in chosen))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "role": self.role.value,
            "source": self.source,
            "licence": self.licence,
            "sha256": self.sha256,
            "prompts": [prompt.to_json() for prompt in self.prompts],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(
            name=value["name"],
            role=Role(value["role"]),
            prompts=tuple(Prompt.from_json(row) for row in value["prompts"]),
            source=value["source"],
            licence=value["licence"],
            sha256=value["sha256"],
        )


@dataclass(frozen=True)
class Dropped:
    """A prompt that gave way to the same or nearly the same prompt in another set.

    `similarity` is the Jaccard similarity of their words, 1 when the normalised texts are equal.
    """

    prompt_id: str
    set_name: str
    role: Role
    kept_id: str
    kept_set: str
    kept_role: Role
    similarity: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {
            "role": self.role.value,
            "kept_role": self.kept_role.value,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(**{**value, "role": Role(value["role"]), "kept_role": Role(value["kept_role"])})


class OverlapResult(NamedTuple):
    """Sets without overlap, in the order given, and what was dropped to get there."""

    sets: tuple[PromptSet, ...]
    dropped: tuple[Dropped, ...]


def _listing(ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:LISTED_IDS])
    return f"{shown} and {len(ids) - LISTED_IDS} more" if len(ids) > LISTED_IDS else shown


def resolve_overlaps(sets: Sequence[PromptSet], strict: bool = False) -> OverlapResult:
    """Drop rows so that no prompt, nor a near-duplicate of one, serves two roles.

    Precedence is that of the roles, then the order of `sets`. Sets of the same role also give way to each other,
    unless the role is evaluation: suites are published with the prompts they share. Rows inside one set stay.
    What counts as a near-duplicate is defined in `near.py`; context strings must agree too.

    Args:
        sets: the sets of one study.
        strict: refuse instead of dropping (for files that a user named).

    Raises:
        InputError: `strict`, and two sets overlap; lists the ids.
    """
    order = sorted(range(len(sets)), key=lambda i: (sets[i].role.precedence, i))
    prints = [[prompt.fingerprint for prompt in one] for one in sets]
    index = NearIndex.over(fingerprint for row in prints for fingerprint in row)
    owners: list[tuple[int, Prompt]] = []
    kept: dict[int, list[Prompt]] = {i: [] for i in range(len(sets))}
    dropped: list[Dropped] = []
    for i in order:
        current = sets[i]
        staying: list[tuple[Prompt, Fingerprint]] = []
        for prompt, fingerprint in zip(current, prints[i], strict=True):
            rivals = ((match, *owners[match.item]) for match in index.matches(fingerprint))
            # Suites of evaluation may share a prompt with each other; nothing else may share one.
            conflict = next(
                (rival for rival in rivals if not current.role is sets[rival[1]].role is Role.EVALUATION),
                None,
            )
            if conflict is None:
                staying.append((prompt, fingerprint))
                continue
            match, j, winner = conflict
            dropped.append(
                Dropped(
                    prompt_id=prompt.id,
                    set_name=current.name,
                    role=current.role,
                    kept_id=winner.id,
                    kept_set=sets[j].name,
                    kept_role=sets[j].role,
                    similarity=match.similarity,
                )
            )
        for prompt, fingerprint in staying:
            index.add(fingerprint)
            owners.append((i, prompt))
        kept[i] = [prompt for prompt, _ in staying]
    if strict and dropped:
        pairs = [f"{d.set_name}:{d.prompt_id} = {d.kept_set}:{d.kept_id}" for d in dropped]
        raise InputError(
            f"{len(dropped)} prompt(s) are in two sets: {_listing(pairs)}",
            where=", ".join(sorted({one.source for one in sets})),
            remedy="Remove them from one of the files.",
        )
    cleaned = tuple(replace(one, prompts=tuple(kept[i])) for i, one in enumerate(sets))
    return OverlapResult(cleaned, tuple(dropped))


def spread(rows: Sequence[Prompt], most: int) -> list[Prompt]:
    """At most so many of some prompts, evenly spaced, since they stand suite by suite."""
    count = min(most, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]
