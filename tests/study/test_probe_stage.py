"""Rows of the probe table from planted activations, and from a study."""

from pathlib import Path

import numpy as np
import pytest

from caryatid.report.tables import read_tables
from caryatid.study.stages.probe import DRAWS, FOLDS, probe_rows
from caryatid.study.tables.probe import TABLE


def planted(n: int = 40, layers: int = 4, written: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Noise, and from one block on an axis that tells the two kinds apart."""
    rng, labels = np.random.default_rng(0), np.arange(n) % 2 == 0
    x = rng.normal(size=(n, layers, 12)).astype(np.float32)
    x[labels, written:, 3] += 6.0
    return x, labels


def test_a_plant_is_read_from_where_it_is_written() -> None:
    x, labels = planted()
    rows = probe_rows("harm", x, labels, seed=0)
    assert [(row["layer"], row["quantity"]) for row in rows] == [
        (layer, name) for layer in range(4) for name in ("accuracy", "auc")
    ]
    for row in rows:
        assert (row["n"], row["n_against"], row["note"]) == (20, 20, "")
        assert row["lo"] <= row["value"] <= row["hi"]
        if row["layer"] < 2:
            assert row["lo"] < 0.6
        else:
            assert row["value"] > 0.85
    assert probe_rows("harm", x, labels, seed=0) == rows


def test_few_prompts_have_fewer_folds_and_one_has_none() -> None:
    x, labels = planted(n=12)
    labels[3:] = False
    assert labels.sum() == 2 < FOLDS < DRAWS
    assert all("value" in row for row in probe_rows("refusal", x, labels, seed=0))
    labels[0] = False
    for row in probe_rows("refusal", x, labels, seed=0):
        assert "value" not in row
        assert row["note"] == "one kind has fewer than two prompts"


@pytest.mark.slow
def test_a_study_has_the_table_at_every_anchor_and_block(finished: Path) -> None:
    rows = read_tables(finished)[TABLE.name]
    anchors = {(row["arm"], row["step"]) for row in rows}
    assert len(anchors) == 5
    assert {row["layer"] for row in rows} == {0, 1, 2, 3}
    harm = [row for row in rows if row["read"] == "harm"]
    assert len(harm) == 5 * 4 * 2
    assert all(0 <= row["lo"] <= row["hi"] <= 1 and row["n"] == 16 and row["n_against"] == 8 for row in harm)
