"""The sets that come with the package, so that a study needs no download, and their fixed splits."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from .prompts import Label, Prompt, PromptSet, Role

LICENCE = "Apache-2.0"
FILES = ("harmful", "harmless", "contrast", "utility", "refusals")

# Shares of the splits: rows, when the file holds 224 harmful prompts.
HARMFUL_SPLITS: Mapping[str, int] = {
    "warmup_harmful": 56,
    "pool": 24,
    "extraction_harmful": 48,
    "selection_harmful": 24,
    "harmbench": 48,
    "strongreject": 24,
}
# Rows of the splits; chat gets the rest, and at least a third.
HARMLESS_SPLITS: Mapping[str, int] = {
    "warmup_harmless": 48,
    "chat": 0,
    "chat_heldout": 24,
    "extraction_harmless": 64,
    "selection_harmless": 32,
}


def embedded_folder() -> Path:
    """Where the package keeps its own sets."""
    return Path(str(resources.files("caryatid.data") / "embedded"))


@cache
def _content(path: Path) -> bytes:
    return path.read_bytes()


def _rows(name: str, folder: Path) -> list[Any]:
    rows: list[Any] = json.loads(_content(folder / f"{name}.json"))
    return rows


def embedded_sha256(name: str, folder: Path | None = None) -> str:
    """SHA-256 of one of the package's own files."""
    return hashlib.sha256(_content((folder or embedded_folder()) / f"{name}.json")).hexdigest()


def embedded_rows(name: str) -> int:
    """How many rows one of the package's own files has."""
    return len(_rows(name, embedded_folder()))


def _prompt(row: Mapping[str, Any], set_name: str, label: Label, **more: Any) -> Prompt:
    """A row of a file whose rows have id, text and category."""
    return Prompt(row["id"], row["text"], set_name, label, category=row["category"], **more)


def _harmful(row: Mapping[str, Any]) -> Prompt:
    return _prompt(row, "embedded_harmful", "harmful", kind="standard", targets=tuple(row["targets"]))


def _harmless(row: Mapping[str, Any]) -> Prompt:
    return _prompt(row, "embedded_harmless", "harmless")


def _utility(row: Mapping[str, Any]) -> Prompt:
    return _prompt(row, "embedded_utility", "harmless", check=row["check"])


def _contrast(row: Mapping[str, Any], side: str, label: Label, kind: str) -> Prompt:
    """One side of a pair of a harmless and a harmful prompt with the same words."""
    return Prompt(
        f"{row['id']}_{side}", row[side], "embedded_contrast", label, category=str(row["pair"]), kind=kind
    )


def _safe(row: Mapping[str, Any]) -> Prompt:
    return _contrast(row, "safe", "harmless", row["type"])


def _unsafe(row: Mapping[str, Any]) -> Prompt:
    return _contrast(row, "unsafe", "harmful", f"contrast_{row['type']}")


def split_rows(prompts: Sequence[Prompt], shares: Mapping[str, int]) -> dict[str, tuple[Prompt, ...]]:
    """Disjoint splits in proportion to `shares`, spread evenly over categories; always the same ones.

    Prompts are put in order of category and a pseudo-random rank of their text; each then goes to the split that is
    furthest behind its share. Split sizes and sizes within a category are so right to within about one prompt.

    Returns:
        Split name → prompts, in the order of `prompts`.
    """
    total = sum(shares.values())
    order = sorted(
        prompts, key=lambda one: (one.category or "", hashlib.sha256(one.key.encode()).hexdigest(), one.id)
    )
    chosen: dict[str, str] = {}
    taken = dict.fromkeys(shares, 0)
    for count, prompt in enumerate(order, start=1):
        behind = {name: share * count / total - taken[name] for name, share in shares.items()}
        split = max(behind, key=behind.__getitem__)
        taken[split] += 1
        chosen[prompt.id] = split
    return {name: tuple(one for one in prompts if chosen[one.id] == name) for name in shares}


def harmless_shares(rows: int) -> dict[str, int]:
    """Shares of the harmless splits when there are `rows` prompts."""
    return {**HARMLESS_SPLITS, "chat": max(rows - sum(HARMLESS_SPLITS.values()), rows // 3)}


def _prompts(name: str, make: Callable[[Mapping[str, Any]], Prompt], folder: Path) -> tuple[Prompt, ...]:
    return tuple(make(row) for row in _rows(name, folder))


def embedded_set(
    name: str, file: str, role: Role, prompts: Sequence[Prompt], folder: Path | None = None
) -> PromptSet:
    """A prompt set of the package's own, with the checksum of the file it comes from."""
    return PromptSet(
        name=name,
        role=role,
        prompts=tuple(prompts),
        source=f"embedded_{file}",
        licence=LICENCE,
        sha256=embedded_sha256(file, folder),
    )


def embedded_harmful(folder: Path | None = None) -> tuple[Prompt, ...]:
    """All harmful requests of the package."""
    return _prompts("harmful", _harmful, folder or embedded_folder())


def embedded_utility(folder: Path | None = None) -> tuple[Prompt, ...]:
    """The benign-utility audit: everyday prompts with a checkable answer."""
    return _prompts("utility", _utility, folder or embedded_folder())


def embedded_refusals(folder: Path | None = None) -> tuple[str, ...]:
    """Refusal sentences for the warm-up."""
    return tuple(_rows("refusals", folder or embedded_folder()))


def embedded_fields(roles: Mapping[str, Role], folder: Path | None = None) -> dict[str, PromptSet]:
    """Every field of a study from the package's own sets, before overlaps are resolved.

    Args:
        roles: role of each field.
        folder: another folder with files of the same form.
    """
    place = folder or embedded_folder()
    splits = split_rows(embedded_harmful(place), HARMFUL_SPLITS)
    files = dict.fromkeys(splits, "harmful")
    calm = _prompts("harmless", _harmless, place)
    harmless = split_rows(calm, harmless_shares(len(calm)))
    splits |= harmless | {
        "xstest_safe": _prompts("contrast", _safe, place),
        "xstest_unsafe": _prompts("contrast", _unsafe, place),
        "utility": embedded_utility(place),
    }
    files |= dict.fromkeys(harmless, "harmless")
    files |= {"xstest_safe": "contrast", "xstest_unsafe": "contrast", "utility": "utility"}
    return {name: embedded_set(name, files[name], role, splits[name], place) for name, role in roles.items()}
