"""Sheets of a study's answers for people to label, blind to arm, step and verdict; the labels read back, and published.

`draw_sample` writes a sheet and keeps the key in the run directory (`labels/`); `labelled_answers` finds the answers
again; `write_label_table` writes where each stands and what it was called, without its words.
"""

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..artifacts import read_json, write_bytes, write_json
from ..data.readers import decode, read_user_bytes
from ..errors import DataMissingError, InputError
from .answers import AnswerRow
from .files import read_placed_answers
from .judges.base import FULL_COMPLIANCE, FULL_REFUSAL, HARMFUL, HARMLESS, PARTIAL_REFUSAL, UNSCORED
from .judges.text import escape_markers

REFUSAL_LABELS = frozenset({FULL_COMPLIANCE, PARTIAL_REFUSAL, FULL_REFUSAL})
HARM_LABELS = frozenset({HARMFUL, HARMLESS})
SHEET_COLUMNS = ("id", "prompt", "context", "answer", "label")
TABLE_COLUMNS = (
    *("seed", "arm", "step", "suite", "attack", "prompt_id", "sample"),
    *("answer_sha256", "label", "verdict", "judge"),
)
_FORMULA = ("=", "+", "-", "@")
_PLACE = ("seed", "arm", "step")

Place = tuple[Any, ...]


class Placed(NamedTuple):
    """An answer and where it was given: (seed, arm, step)."""

    place: Place
    row: AnswerRow

    @property
    def address(self) -> list[Any]:
        """What names this answer within its run."""
        row = self.row
        return [*self.place, row.suite, row.attack, row.prompt_id, row.sample]


def run_answers(run: Path) -> list[Placed]:
    """All judged answers of a run.

    Raises:
        DataMissingError: the run has no `answers/answers.jsonl`.
    """
    path = run / "answers" / "answers.jsonl"
    if not path.exists():
        raise DataMissingError(
            "no judged answers", where=str(path), remedy="Finish the run with `caryatid study run`."
        )
    return [Placed(tuple(place[name] for name in _PLACE), row) for place, row in read_placed_answers(path)]


def _digest(row: AnswerRow) -> str:
    return hashlib.sha256(f"{row.prompt}\0{row.text}".encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _in_turn(groups: Mapping[object, list[int]], rng: np.random.Generator) -> list[int]:
    """The groups' items taken in rounds: one from every group that still has one, the groups of a round shuffled."""
    rounds = [list(group) for group in zip_longest(*groups.values())]
    return [int(one) for group in rounds for one in rng.permutation([i for i in group if i is not None])]


def stratified(strata: Sequence[tuple[object, object]], size: int, rng: np.random.Generator) -> list[int]:
    """Places of about `size` items, as equally many from each stratum as there are, in random order.

    Strata with too few items are drawn whole and the others make up for them; what does not divide evenly goes to
    strata chosen at random. Within a stratum the same holds of its parts.

    Args:
        strata: stratum and part of each item.
    """
    members: dict[object, dict[object, list[int]]] = {}
    for place in rng.permutation(len(strata)):
        stratum, part = strata[place]
        members.setdefault(stratum, {}).setdefault(part, []).append(int(place))
    drawn = _in_turn({stratum: _in_turn(parts, rng) for stratum, parts in members.items()}, rng)[:size]
    return [drawn[i] for i in rng.permutation(len(drawn))]


def draw_sample(
    run: Path,
    output: Path,
    *,
    size: int,
    seed: int,
    suites: Sequence[str] = (),
    arms: Sequence[str] = (),
    steps: Sequence[int] = (),
) -> tuple[int, Path]:
    """Write `size` answers of a run as a CSV sheet to be labelled, stratified by seed, arm and step.

    Within these as many are drawn from each suite and attack as there are.

    The sheet has `id`, `prompt`, `context`, `answer` and an empty `label`, in random order. Control characters and
    chat markers are made inert, and a cell that a spreadsheet would compute gets a leading space.

    Args:
        suites, arms, steps: draw from these only; empty: from all.

    Returns:
        Number of answers, and the path of the key file in the run directory.

    Raises:
        DataMissingError: no judged answers. InputError: no answers of these, or fewer than one asked for.
    """
    found = run_answers(run)
    answers = [
        one
        for one in found
        if (not suites or one.row.suite in suites)
        and (not arms or one.place[1] in arms)
        and (not steps or one.place[2] in steps)
    ]
    if size < 1 or not answers:
        known = sorted({one.row.suite for one in found})
        places = sorted({f"{one.place[1]}@{one.place[2]}" for one in found})
        raise InputError(
            f"no answers to draw {size} from",
            where=str(run),
            remedy=f"Suites: {', '.join(known)}; anchors: {', '.join(places)}.",
        )
    rng = np.random.default_rng(seed)
    strata = [(one.place, (one.row.suite, one.row.attack)) for one in answers]
    chosen = [answers[i] for i in stratified(strata, size, rng)]
    sheet_id = rng.bytes(4).hex()
    key: dict[str, Any] = {}
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(SHEET_COLUMNS)
    for number, one in enumerate(chosen, start=1):
        name = f"{sheet_id}-{number:04d}"
        key[name] = {"answer": one.address, "digest": _digest(one.row)}
        texts = (one.row.prompt, one.row.context or "", one.row.text)
        writer.writerow([name, *(_cell(text) for text in texts), ""])
    write_bytes(output, stream.getvalue().encode("utf-8", "backslashreplace"))
    path = run / "labels" / f"{sheet_id}.json"
    write_json(path, {"suites": sorted({one.row.suite for one in answers}), "seed": seed, "key": key})
    return len(chosen), path


def _cell(text: str) -> str:
    shown = escape_markers(text)
    return f" {shown}" if shown.startswith(_FORMULA) else shown


def read_labels(sheet: Path) -> dict[str, str]:
    """The label of each id of a sheet, empty where it has none yet; InputError for a sheet that cannot be used."""
    reader = csv.DictReader(io.StringIO(decode(read_user_bytes(sheet), sheet), newline=""))
    if not {"id", "label"} <= set(reader.fieldnames or ()):
        raise InputError("no columns `id` and `label`", where=str(sheet), remedy="Label a drawn sheet.")
    found: dict[str, str] = {}
    for row in reader:
        name, label = (row["id"] or "").strip(), (row["label"] or "").strip().lower()
        if name in found:
            raise InputError(f"{name!r} stands twice", where=str(sheet), remedy="Keep one row each.")
        if label and label not in REFUSAL_LABELS | HARM_LABELS:
            raise InputError(
                f"label {label!r} of {name!r}",
                where=str(sheet),
                remedy=f"Use {', '.join(sorted(REFUSAL_LABELS))}; or {', '.join(sorted(HARM_LABELS))}.",
            )
        found[name] = label
    used = {label for label in found.values() if label}
    if not used:
        raise InputError("no labels", where=str(sheet), remedy="Fill in the column `label`.")
    if used & REFUSAL_LABELS and used & HARM_LABELS:
        raise InputError("labels of refusal and of harm", where=str(sheet), remedy="Label one question.")
    return found


def labelled_answers(
    run: Path, labels: Mapping[str, str], where: str
) -> tuple[list[tuple[Placed, str]], set[str]]:
    """The labelled answers with their labels, in the order of `labels`, and the suites that were drawn from.

    `where` names the sheet in errors.
    """
    key: dict[str, Any] = {}
    suites: set[str] = set()
    for sheet in sorted({name.split("-")[0] for name in labels}):
        path = run / "labels" / f"{sheet}.json"
        if not path.exists():
            raise InputError(
                f"{sheet!r} names no sheet of this run", where=where, remedy="Name the run it was drawn from."
            )
        stored = read_json(path)
        key |= stored["key"]
        suites |= set(stored["suites"])
    answers = {tuple(one.address): one for one in run_answers(run)}
    pairs = []
    for name, label in labels.items():
        entry = key.get(name)
        one = answers.get(tuple(entry["answer"])) if entry else None
        if entry is None or one is None or _digest(one.row) != entry["digest"]:
            raise InputError(
                f"{name!r} is no answer of this run any more",
                where=where,
                remedy="Draw a new sheet: the run has changed since.",
            )
        if label:
            pairs.append((one, label))
    return pairs, suites


def write_label_table(run: Path, sheet: Path, output: Path) -> int:
    """Write the labelled answers of a sheet as a CSV table, in the sheet's order; returns their number.

    The first seven of `TABLE_COLUMNS` name the answer within its run; `answer_sha256` is the SHA-256 of its text in
    UTF-8, so that it can be matched where the run is repeated. Neither prompt nor answer is written.

    Raises:
        DataMissingError: no judged answers, or no such sheet. InputError: no labels, unknown ones, or ids that are not
            of this run.
    """
    pairs, _ = labelled_answers(run, read_labels(sheet), str(sheet))
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(TABLE_COLUMNS)
    for one, label in pairs:
        row = one.row
        digest = hashlib.sha256(row.text.encode("utf-8", "backslashreplace")).hexdigest()
        in_words = {1: HARMFUL, 0: HARMLESS, None: UNSCORED}[row.harmful]
        found = (in_words, row.harm_judge) if label in HARM_LABELS else (row.verdict, row.judge)
        writer.writerow([*one.address, digest, label, *found])
    write_bytes(output, stream.getvalue().encode("utf-8"))
    return len(pairs)
