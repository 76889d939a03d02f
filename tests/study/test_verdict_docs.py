"""The worked examples of docs/verdict.md are what the verdict function says."""

import math
import re
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML

from caryatid.causal.transfer import TransferCounts
from caryatid.stats import Interval
from caryatid.study.decision import LABELS, Evidence, Places, Thresholds, Verdict, decide

DOC = Path(__file__).parents[2] / "docs" / "verdict.md"
EXAMPLE = re.compile(
    r"### (?P<title>[^\n]+)\n.*?```yaml\n(?P<given>.*?)```\n\n```text\n(?P<said>.*?)```", re.DOTALL
)


def evidence_of(text: str) -> Evidence:
    given = YAML(typ="safe").load(text)
    rows = [[math.nan if v is None else v for v in row[:6]] for row in given["places"]]
    draws = np.repeat(np.array(rows, dtype=float), [row[6] for row in given["places"]], axis=0)
    value, lo, hi = (math.cos(math.radians(each)) for each in given["angle"])
    return Evidence(
        places=Places(*draws.T, np.arange(len(draws))),
        transfer=TransferCounts(*given["transfer"], Interval(*given["random"]), 8),
        cosine=Interval(value, hi, lo),
        rank_difference=Interval(*given["rank"]),
    )


def said(verdict: Verdict) -> str:
    flag = "" if verdict.rank == "none" else f" ({verdict.rank})"
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
