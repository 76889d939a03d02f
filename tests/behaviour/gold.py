"""Human labels of answers, where `CARYATID_DATA` names a folder that has them."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

LABEL_FOLDER = Path(os.environ.get("CARYATID_DATA", "")) / "judge_gold"
needs_labels = pytest.mark.skipif(
    not (os.environ.get("CARYATID_DATA") and LABEL_FOLDER.is_dir()),
    reason="needs the human labels: set CARYATID_DATA to a folder with judge_gold/",
)


XSTEST = (LABEL_FOLDER / "xstest_human_dev.csv", LABEL_FOLDER / "xstest_human_dev2.csv")


def xstest_labels() -> list[dict[str, str]]:
    """Rows with model, id, type, prompt, completion, final_label (1_full_compliance, …), of three models."""
    rows = []
    for path in XSTEST:
        with path.open(newline="", encoding="utf-8") as stream:
            rows += list(csv.DictReader(stream))
    return rows


def harmbench_labels() -> list[dict[str, Any]]:
    """Rows with behavior_id, behavior, generation, human_majority."""
    rows: list[dict[str, Any]] = json.loads(
        (LABEL_FOLDER / "harmbench_human_dev.json").read_text(encoding="utf-8")
    )
    return rows
