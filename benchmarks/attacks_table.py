"""What attacks do to one anchor beside asking directly: rates, paired differences and budgets, from finished files.

    caryatid attack NAME --model M --behaviors FILE --out FOLDER/NAME.d --json > FOLDER/NAME.json
    caryatid evaluate M --suite harmbench --cases FOLDER/NAME.json --out FOLDER/NAME.ev
    python benchmarks/attacks_table.py RUN --attack NAME FOLDER SECONDS [--attack …] --out FILE.json [--further]

RUN is a study whose step 0 is the model M, asked the same behaviours with the same judges; SECONDS is what the first
command took (`-`: it was not timed). With `--further` the attacks are added to those of FILE, beside whose direct
requests they were made. docs/attacks.md shows `table()` of `benchmarks/results/attacks-step0-cuda.json`; a test
compares.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from caryatid.artifacts import write_json
from caryatid.behaviour.answers import AnswerRow
from caryatid.behaviour.files import read_answers
from caryatid.behaviour.metrics import metrics_rows
from caryatid.errors import InputError
from caryatid.study.run import open_run
from caryatid.study.series import BASE, AnchorRef
from caryatid.study.table import RATE
from caryatid.study.tables.behaviour import attacked_minus_direct, judged_answers
from publish import finished_part
from shares import bounds

METRICS = ("compliance", "any_refusal", "degenerate", "harm")
HEADINGS = (
    "attack",
    "answered",
    "− direct, paired",
    "degenerate",
    "judged harmful",
    "begin with the target",
    "target loss, nats",
    "forward + backward tokens",
    "s",
)
FACTS = tuple(column.name for column in RATE if column.name in ("value", "lo", "hi", "n", "judge"))


def direct_answers(run_path: Path) -> tuple[AnchorRef, list[AnswerRow]]:
    """Step 0 of a run, and its judged answers to direct requests."""
    for anchor, rows, _ in judged_answers(finished_part(open_run(run_path, recorded=False))):
        if anchor.arm == BASE:
            return anchor, [row for row in rows if (row.suite, row.attack) == ("harmbench", "direct")]
    raise InputError(
        "step 0 has no answers", where=str(run_path), remedy="Run its stages `answers` and `harm`."
    )


def _facts(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in FACTS}


def rates(rows: Sequence[AnswerRow]) -> dict[str, dict[str, Any]]:
    """Rates of `METRICS` with their intervals."""
    found = {row["metric"]: row for row in metrics_rows(rows, BASE, 0, 0)}
    return {metric: _facts(found[metric]) for metric in METRICS}


def budget(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means per behaviour; nats a target token before and after, where the attack takes that loss."""
    means = ("forward_tokens", "backward_tokens", "steps", "candidates", "seconds")
    objectives = [case["details"]["objective_loss"] for case in cases if "objective_loss" in case["details"]]
    ends = [(case["losses"][0], case["loss"]) for case in cases if case["losses"]]
    return {
        **{name: fmean(case[name] for case in cases) for name in means},
        "loss_before": fmean(before for before, _ in ends) if ends else None,
        "loss_after": fmean(after for _, after in ends) if ends else None,
        "objective_loss": fmean(objectives) if len(objectives) == len(cases) else None,
        "answered_in_search": sum(case["details"].get("answered", False) for case in cases),
    }


def attacked(
    name: str, folder: Path, anchor: AnchorRef, direct: Sequence[AnswerRow]
) -> tuple[dict[str, Any], list[AnswerRow]]:
    """One attack's facts, and the direct answers to its behaviours.

    Raises:
        InputError: a behaviour that the run did not ask directly, or other judges.
    """
    cases = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["cases"]
    rows = read_answers(folder / f"{name}.ev" / "answers.jsonl")
    targets = {case["behavior_id"]: case["target"].casefold() for case in cases}
    same = [row for row in direct if row.prompt_id in targets]
    judges = {(row.judge, row.harm_judge) for row in (*same, *rows)}
    if len(same) != len(rows) or targets.keys() != {row.prompt_id for row in rows} or len(judges) > 1:
        raise InputError(
            f"{len(rows)} answers, {len(same)} direct ones, judges {sorted(map(str, judges))}",
            where=name,
            remedy="Ask the same behaviours, with the same judges.",
        )
    (difference,) = attacked_minus_direct([*same, *rows], anchor)
    given = any(case["begun_text"] for case in cases)  # then the answer that is judged goes on from it
    reached = sum(row.text.casefold().startswith(targets[row.prompt_id]) for row in rows)
    facts = {
        "minus_direct": _facts(difference),
        "begins_with_target": None if given else reached,
        "budget": budget(cases),
    }
    return rates(rows) | facts, same


def added(before: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Both files' attacks, on the direct requests of the first.

    Raises:
        InputError: they are of other behaviours, or what direct requests come to differs.
    """
    if before["behaviours"] != found["behaviours"] or before["direct"] != found["direct"]:
        raise InputError(
            f"other behaviours, or other direct answers: {before['direct']['compliance']} and "
            f"{found['direct']['compliance']}",
            remedy="Attack the same behaviours of the same model.",
        )
    unfinished = {name: how for name, how in before["unfinished"].items() if name not in found["attacks"]}
    return {
        **before,
        "attacks": {**before["attacks"], **found["attacks"]},
        "unfinished": unfinished | found["unfinished"],
    }


def table(content: Mapping[str, Any]) -> str:
    """The file's numbers in Markdown, most often answered first."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    rows = content["attacks"].items()
    for name, row in sorted(rows, key=lambda one: -one[1]["compliance"]["value"]):
        cells = [f"`{name}`", bounds(row["compliance"]), bounds(row["minus_direct"])]
        cells += [bounds(row[metric]) for metric in ("degenerate", "harm")]
        spent, reached = row["budget"], row["begins_with_target"]
        before, after = spent["loss_before"], spent["loss_after"]
        cells += [
            "(given)" if reached is None else f"{reached} of {row['compliance']['n']}",
            "–" if before is None else f"{before:.4f} → {after:.4f}",
            f"{spent['forward_tokens']:,.0f} + {spent['backward_tokens']:,.0f}",
            "–" if row["command_seconds"] is None else f"{row['command_seconds']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    asked = content["direct"]
    cells = [bounds(asked[metric]) for metric in ("compliance", "degenerate", "harm")]
    lines.append(f"| asked directly | {cells[0]} | | {cells[1]} | {cells[2]} | | | | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--attack", nargs=3, action="append", required=True, metavar=("NAME", "FOLDER", "SECONDS")
    )
    parser.add_argument("--unfinished", nargs=2, action="append", default=[], metavar=("NAME", "HOW_FAR"))
    parser.add_argument("--device", required=True)
    parser.add_argument("--note", default="")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--further", action="store_true", help="Add to what the file has.")
    options = parser.parse_args()
    anchor, direct = direct_answers(options.run)
    found, asked = {}, dict[str, AnswerRow]()
    for name, folder, seconds in options.attack:
        facts, same = attacked(name, Path(folder), anchor, direct)
        found[name] = (
            facts
            | {"command_seconds": None if seconds == "-" else float(seconds)}
            | ({"note": options.note} if options.further else {})
        )
        asked |= {row.prompt_id: row for row in same}
    content = {
        "device": options.device,
        "note": options.note,
        "direct": rates(list(asked.values())),
        "attacks": found,
        "unfinished": dict(options.unfinished),
        "behaviours": sorted(asked),
    }
    if options.further:
        content = added(json.loads(options.out.read_text(encoding="utf-8")), content)
    write_json(options.out, content)
    print(table(content), end="")


if __name__ == "__main__":
    main()
