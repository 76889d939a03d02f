"""The worked examples of docs/verdict.md are what the verdict function says."""

import math
import re
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML

from caryatid.stats import Interval
from caryatid.study.tables.shifts import COLUMNS, shift_rows
from caryatid.study.verdict import LABELS, Evidence, Thresholds, Verdict, decide

DOC = Path(__file__).parents[2] / "docs" / "verdict.md"
EXAMPLE = re.compile(
    r"### (?P<title>[^\n]+)\n.*?```yaml\n(?P<given>.*?)```\n\n```text\n(?P<said>.*?)```", re.DOTALL
)


def evidence_of(text: str) -> Evidence:
    given = YAML(typ="safe").load(text)
    places = [[math.nan if v is None else v for v in row[:4]] for row in given["shifts"]]
    draws = np.repeat(np.array(places, dtype=float), [row[4] for row in given["shifts"]], axis=0)
    return Evidence(
        depth_a=draws[:, 0],
        depth_b=draws[:, 1],
        argmin_a=draws[:, 2],
        argmin_b=draws[:, 3],
        transfer_ratio=Interval(*given["transfer_ratio"]),
        transfer_reason=None,
        excess_angle=Interval(*given["excess_angle"]),
        rank_difference=Interval(*given["rank_difference"]),
    )


def said(verdict: Verdict) -> str:
    flag = " (expansion)" if verdict.expansion else ""
    return "\n".join([verdict.label + flag, *verdict.reasons]) + "\n"


def test_there_is_one_example_of_each_label_and_each_is_true() -> None:
    found = list(EXAMPLE.finditer(DOC.read_text(encoding="utf-8")))
    assert [each["title"].lower() for each in found] == list(LABELS)
    for each in found:
        verdict = decide(evidence_of(each["given"]), Thresholds())
        assert verdict.label == each["title"].lower()
        assert each["said"] == said(verdict)


def test_the_thresholds_named_are_the_defaults() -> None:
    named = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+)°? \|", DOC.read_text(encoding="utf-8"), re.MULTILINE))
    assert {name: float(value) for name, value in named.items()} == vars(Thresholds())


def test_places_are_counted_and_lost_by_nothing() -> None:
    given = evidence_of(
        "shifts: [[0.7, 0.7, 0.8, 0.8, 3], [0.7, null, 0.8, null, 2]]\ntransfer_ratio: [1, 1, 1]\n"
        "excess_angle: [1, 1, 1]\nrank_difference: [0, 0, 0]"
    )
    rows = shift_rows(given)
    assert [tuple(row[name] for name in (*COLUMNS, "draws")) for row in rows] == [
        (0.7, 0.7, 0.8, 0.8, 3),
        (0.7, None, 0.8, None, 2),
    ]
