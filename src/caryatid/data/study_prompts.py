"""The prompts of one study: every field with its role, from the benchmarks or from the package's own sets."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

from ..errors import InputError, UsageError
from .categories import assign_categories
from .download import DownloadError
from .embedded_sets import (
    embedded_fields,
    embedded_harmful,
    embedded_refusals,
    embedded_set,
    embedded_utility,
)
from .prompts import Dropped, Label, PromptSet, Role, resolve_overlaps
from .readers import read_prompt_file
from .sources import Lookup, obtain_all, read_set

Source = Literal["auto", "benchmarks", "embedded"]
UsedSource = Literal["benchmarks", "embedded"]

# Role of every field. Within a role, earlier fields keep the rows that they share with later ones.
ROLES: Mapping[str, Role] = {
    "pool": Role.TRAINING,
    "warmup_harmful": Role.TRAINING,
    "warmup_harmless": Role.TRAINING,
    "chat": Role.TRAINING,
    "chat_heldout": Role.EVALUATION,
    "extraction_harmful": Role.EXTRACTION,
    "extraction_harmless": Role.EXTRACTION,
    "selection_harmful": Role.SELECTION,
    "selection_harmless": Role.SELECTION,
    "harmbench": Role.EVALUATION,
    "strongreject": Role.EVALUATION,
    "xstest_safe": Role.EVALUATION,
    "xstest_unsafe": Role.EVALUATION,
    "utility": Role.EVALUATION,
}
HARMFUL_FIELDS = frozenset(
    {
        "pool",
        "warmup_harmful",
        "extraction_harmful",
        "selection_harmful",
        "harmbench",
        "strongreject",
        "xstest_unsafe",
    }
)
# Fields that are a named benchmark set as a whole.
BENCHMARKS: Mapping[str, str] = {
    "pool": "harmbench_adv_training",
    "extraction_harmful": "harmful_train",
    "selection_harmful": "harmful_val",
    "selection_harmless": "harmless_val",
    "harmbench": "harmbench_test",
    "strongreject": "strongreject",
    "xstest_safe": "xstest_safe",
    "xstest_unsafe": "xstest_unsafe",
}
# Fields that share harmless_train, and the rows each gets; the last gets the rest.
SHARED_SET = "harmless_train"
SHARES: Mapping[str, int] = {
    "extraction_harmless": 4096,
    "warmup_harmless": 1024,
    "chat_heldout": 512,
    "chat": 0,
}


@dataclass(frozen=True)
class StudyPrompts:
    """All prompts of a study. No prompt, nor a near-duplicate of one, serves two roles.

    Attributes:
        pool: behaviours with targets that R2D2 and refusal-SFT train on.
        warmup_harmful, warmup_harmless: the warm-up's.
        chat, chat_heldout: for self-distilled answers; held out for perplexity and benign KL.
        extraction_*, selection_*: for directions, and for choosing among them.
        harmbench, strongreject, xstest_*, utility: the evaluation suites.
        refusals: sentences the warm-up trains toward.
        dropped: rows that gave way to another role.
        source: where the sets come from that no file replaces.
        note: how they were found this time, for people; no part of what they are, so neither compared nor stored.
    """

    pool: PromptSet
    warmup_harmful: PromptSet
    warmup_harmless: PromptSet
    chat: PromptSet
    chat_heldout: PromptSet
    extraction_harmful: PromptSet
    extraction_harmless: PromptSet
    selection_harmful: PromptSet
    selection_harmless: PromptSet
    harmbench: PromptSet
    strongreject: PromptSet
    xstest_safe: PromptSet
    xstest_unsafe: PromptSet
    utility: PromptSet
    refusals: tuple[str, ...]
    dropped: tuple[Dropped, ...]
    source: UsedSource
    note: str = field(default="", compare=False)

    @property
    def sets(self) -> dict[str, PromptSet]:
        """Field name → set."""
        return {name: getattr(self, name) for name in ROLES}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values of all but the note: equal prompts give equal values, wherever they were found."""
        return {
            "sets": {name: one.to_json() for name, one in self.sets.items()},
            "refusals": list(self.refusals),
            "dropped": [row.to_json() for row in self.dropped],
            "source": self.source,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        sets: dict[str, Any] = {name: PromptSet.from_json(value["sets"][name]) for name in ROLES}
        return cls(
            **sets,
            refusals=tuple(value["refusals"]),
            dropped=tuple(Dropped.from_json(row) for row in value["dropped"]),
            source=value["source"],
        )


class SourceChoice(NamedTuple):
    """Which sets a study uses, and why."""

    source: UsedSource
    note: str


def label_of(name: str) -> Label:
    """Whether the prompts of a field are harmful."""
    return "harmful" if name in HARMFUL_FIELDS else "harmless"


def choose_source(source: Source, lookup: Lookup) -> SourceChoice:
    """Decide between the benchmarks and the package's own sets; downloads what is missing if it may.

    `auto` takes the benchmarks where they can be had. It gives up at the first download that fails, so that a
    machine without a network loses a few seconds at most.

    Raises:
        UsageError: no such source.
        DataMissingError: the benchmarks were asked for, or `CARYATID_DATA` is set, and a file is missing;
            or a file that is here is damaged.
    """
    if source not in get_args(Source):
        raise UsageError(f"no source {source!r}", remedy=f"Use {', '.join(get_args(Source))}.")
    if source == "embedded":
        return SourceChoice("embedded", "the package's own sets, as asked")
    names = (*BENCHMARKS.values(), SHARED_SET)
    try:
        obtain_all(names, lookup)
    except DownloadError as error:
        if source == "benchmarks":
            raise
        return SourceChoice(
            "embedded", f"the package's own sets, because the benchmarks cannot be had ({error})"
        )
    where = f"CARYATID_DATA ({lookup.data})" if lookup.data is not None else f"the cache ({lookup.cache})"
    topics = "topics of extraction prompts assigned by word lists"
    return SourceChoice("benchmarks", f"the published benchmarks, from {where}; {topics}")


def _shares(lookup: Lookup) -> dict[str, PromptSet]:
    """harmless_train cut into its fields: always the same rows, in a fixed pseudo-random order."""
    whole = read_set(SHARED_SET, lookup)
    order = sorted(whole, key=lambda one: hashlib.sha256(one.key.encode()).hexdigest())
    parts: dict[str, PromptSet] = {}
    start = 0
    for name, rows in SHARES.items():
        end = start + rows if rows else len(order)
        chosen = {one.id for one in order[start:end]}
        prompts = tuple(one for one in whole if one.id in chosen)
        parts[name] = replace(whole, name=name, role=ROLES[name], prompts=prompts)
        start = end
    return parts


def _benchmark_fields(lookup: Lookup) -> dict[str, PromptSet]:
    """Every field from the real sets; warm-up requests and the utility audit are the package's own."""
    found = {
        name: replace(read_set(published, lookup), name=name, role=ROLES[name])
        for name, published in BENCHMARKS.items()
    }
    extraction = found["extraction_harmful"]
    # The published split has no categories, which directions per category need.
    found["extraction_harmful"] = replace(extraction, prompts=assign_categories(extraction.prompts))
    found |= _shares(lookup)
    found["warmup_harmful"] = embedded_set(
        "warmup_harmful", "harmful", ROLES["warmup_harmful"], embedded_harmful()
    )
    found["utility"] = embedded_set("utility", "utility", ROLES["utility"], embedded_utility())
    return {name: found[name] for name in ROLES}


def _check_fields(given: Mapping[str, object], what: str) -> None:
    unknown = sorted(set(given) - set(ROLES))
    if unknown:
        raise InputError(
            f"unknown prompt field {unknown[0]!r}", where=what, remedy=f"Choose from {', '.join(ROLES)}."
        )


def user_fields(files: Mapping[str, Path]) -> dict[str, PromptSet]:
    """The user's own files; two of them must not overlap.

    Raises:
        InputError: they do, or one cannot be used. DataMissingError: a file is missing.
    """
    found = {
        name: read_prompt_file(Path(path), name=name, role=ROLES[name], label=label_of(name))
        for name, path in files.items()
    }
    resolve_overlaps([found[name] for name in ROLES if name in found], strict=True)
    return found


def build_study_prompts(
    *,
    source: Source = "auto",
    limits: Mapping[str, int] | None = None,
    seed: int = 0,
    files: Mapping[str, Path] | None = None,
    offline: bool = False,
    lookup: Lookup | None = None,
) -> StudyPrompts:
    """Collect a study's prompts: sets, then the user's files in their place, then overlaps, then limits.

    Args:
        source: `benchmarks`, `embedded` or `auto` (see `choose_source`).
        limits: largest number of prompts by field; 0 or absent: all.
        seed: decides which prompts a limit leaves; the splits of the sets do not depend on it.
        files: the user's own prompts by field (CSV, JSON, JSONL).
        offline: never download.
        lookup: where files are looked for; default: from the environment.

    Raises:
        InputError: an unknown field, a file that cannot be used, files that overlap, or a field without prompts.
        DataMissingError: a benchmark or a file is missing or damaged.
    """
    limits, files = limits or {}, files or {}
    _check_fields(limits, "prompts.limits")
    _check_fields(files, "prompts.files")
    own = user_fields(files)
    place = lookup or Lookup.from_environment(offline=offline)
    chosen = choose_source(source, place)
    found = _benchmark_fields(place) if chosen.source == "benchmarks" else embedded_fields(ROLES)
    result = resolve_overlaps([own.get(name, found[name]) for name in ROLES])
    sets: dict[str, Any] = {one.name: one.subsample(limits.get(one.name, 0), seed) for one in result.sets}
    for name, one in sets.items():
        if not len(one):
            raise InputError(
                f"no prompts left for {name}",
                where=one.source,
                remedy="All of them are also in a set of higher precedence; give it others.",
            )
    note = chosen.note + (f"; your own files for {', '.join(own)}" if own else "")
    return StudyPrompts(
        **sets,
        refusals=embedded_refusals(),
        dropped=result.dropped,
        source=chosen.source,
        note=note,
    )
