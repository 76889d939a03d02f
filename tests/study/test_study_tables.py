"""The tables: documented, with the contract's columns, and none of them declared for nothing.

Of the contract `verdict.reachable` and the table `nulls` are still being built; they join `CONTRACT` with them.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import forget, plant, refused_prompts, small_config

from caryatid.report.tables import read_tables
from caryatid.study.flow import run_study
from caryatid.study.run import open_run
from caryatid.study.series import anchors_of, transfer_sources
from caryatid.study.stages.answers import Answers
from caryatid.study.stages.candidates import Candidates, ScoredCandidates
from caryatid.study.stages.reextraction import Reextracted, Reextraction
from caryatid.study.stages.selection import Selected, Selection
from caryatid.study.stages.transfer import Transfer
from caryatid.study.table import all_tables, tables_markdown
from caryatid.study.tables.behaviour import attacked_minus_direct

DOCS = Path(__file__).parents[2] / "docs" / "tables.md"
ANCHOR, PAIR, INTERVAL = ("seed", "arm", "step"), ("seed", "arm", "from", "to"), ("value", "lo", "hi")
CONTRACT = {
    "behaviour": (*ANCHOR, "suite", "prompt_set", "attack", "metric", *INTERVAL, "n", "judge"),
    "carriers": (
        *ANCHOR, "position", "layer", "depth", "bypass", "induce", "kl", "bypass_effect", "induce_effect", "profile",
        "admissible", "best",
    ),
    "rank": (*ANCHOR, "quantity", *INTERVAL),
    "drift": (*PAIR, "quantity", *INTERVAL),
    "transfer": (*PAIR, "quantity", *INTERVAL),
    "causal": (*ANCHOR, "intervention", "rank", "alpha", "control", "read_out", *INTERVAL, "n"),
    "training": (
        *ANCHOR, "loss_sft", "loss_away", "loss_toward", "gcg_loss", "gcg_steps", "tokens", "flops", "delta_weight",
        "benign_kl", "seconds",
    ),
    "verdict": (*PAIR, "label", "rank_change", "reasons", "thresholds"),
}  # fmt: skip
# Tables without rows in the small study: its sets share no prompt, nobody asked for nulls (`test_null_stage.py`), cones
# or an attribution (`test_cone_stage.py`), and too few of its prompts are refused for directions of their own
# (`test_behaved_stage.py`).
NO_ROWS = {"dropped", "nulls", "behaved", "cone", "attribution"}
# Columns that stay empty in the small study, with the reason.
EMPTY = {
    "behaviour.note": "step 0 answers fewer than nine of ten requests",
    "behaviour_by_group.note": "the same",
    "behaviour.group": "whole suites; groups are in behaviour_by_group",
    "training.loss_reroute": "no arm circuit_breakers (tests/training/test_robust_arms.py)",
    "training.loss_retain": "the same",
    "training.loss_dpo": "no arm dpo (tests/training/test_robust_arms.py)",
    "costs.device_memory": "no device besides the CPU",
}


def test_the_page_of_tables_is_what_the_code_declares() -> None:
    assert DOCS.read_text(encoding="utf-8") == tables_markdown(), (
        "python -m caryatid.study.table > docs/tables.md"
    )


def test_the_contracts_columns_are_there() -> None:
    declared = {table.name: {column.name for column in table.columns} for table in all_tables()}
    for name, columns in CONTRACT.items():
        assert set(columns) <= declared[name], name


def test_every_column_is_explained() -> None:
    for table in all_tables():
        assert table.about.endswith(".")
        names = [column.name for column in table.columns]
        assert len(set(names)) == len(names)
        assert all(column.meaning for column in table.columns), table.name
        assert table.shown is None or set(table.shown.columns) <= set(names)


def with_carriers(found: Candidates) -> Candidates:
    """Scores of an anchor that refuses harmful prompts alone; all candidates but the deepest are admissible."""
    old = found.scores
    noise = np.linspace(-0.1, 0.1, len(old.harmful))
    layers = old.layers[:, None]
    return replace(
        found,
        scores=replace(
            old,
            harmful=4 + noise,
            harmless=-4 + noise,
            bypass=-layers + noise,
            induce=np.broadcast_to(4 + noise, old.induce.shape).copy(),
            kl=np.where(layers < 3, 0.05, 3.0) + 0 * old.kl,
        ),
    )


def refusing(found: Selected, harmless: str = "full_compliance") -> Selected:
    return Selected(
        tuple(replace(row, verdict="full_refusal") for row in found.harmful),
        tuple(replace(row, verdict=harmless) for row in found.harmless),
    )


@pytest.fixture(scope="module")
def tables(
    place: Path, finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    """The small study's, whose tiny model refuses nothing, with scores and refusals of models that do; the last one
    refuses harmless prompts as well."""
    config, run = small_config(place), tmp_path_factory.mktemp("tables") / "run"
    shutil.copytree(finished, run)
    *most, last = anchors_of(config, 0)
    plant(config, run, Selection, last, lambda found: refusing(found, harmless="full_refusal"))
    plant(config, run, ScoredCandidates, last, lambda found: replace(found, note="every prompt was refused"))
    for ref in most:
        plant(config, run, ScoredCandidates, ref, with_carriers)
        plant(config, run, Selection, ref, refusing)
        scores = open_run(run).of(ScoredCandidates, ref).scores
        plant(config, run, Reextraction, ref, lambda _found, scores=scores: Reextracted((scores, scores)))
        sources = [source.label for source in transfer_sources(config, ref)]
        refused = refused_prompts(sources, ref.label, "I'm sorry, but I can't help with that.", 4)
        plant(config, run, Transfer, ref, lambda _found, refused=refused: refused)
    forget(run, "carrier", "uncertainty", "comparison", "verdict", "rank")
    run_study(config, run)
    return read_tables(run)


def test_every_declared_column_has_a_value_somewhere(tables: dict[str, list[dict[str, Any]]]) -> None:
    empty = {
        f"{table.name}.{column.name}"
        for table in all_tables()
        if table.name not in NO_ROWS
        for column in table.columns
        if all(row[column.name] is None or row[column.name] == "" for row in tables[table.name])
    }
    assert empty == set(EMPTY), sorted(empty ^ set(EMPTY))


def test_every_attack_is_compared_with_asking_the_same_requests(finished: Path) -> None:
    run = open_run(finished)
    ref, found = next(run.each(Answers))
    direct = [row for row in found.rows if (row.suite, row.attack) == ("harmbench", "direct")]
    rows = [
        replace(row, attack=attack) for row in direct for attack in ("direct", "adaptive", "fixed_source")
    ]
    for number, row in enumerate(rows):
        answered = row.attack == "fixed_source" or (row.attack == "adaptive") == (number % 2 == 0)
        rows[number] = replace(
            row, verdict="full_compliance" if answered else "full_refusal", degenerate=None
        )
    compared = {row["attack"]: row for row in attacked_minus_direct(rows, ref)}
    assert set(compared) == {"adaptive", "fixed_source"}
    for attack, difference in compared.items():
        sides = [
            np.array([one.answered for one in rows if one.attack == name], dtype=float)
            for name in (attack, "direct")
        ]
        assert difference["value"] == pytest.approx(sides[0].mean() - sides[1].mean())
        assert difference["n"] == len(direct)
        assert difference["lo"] <= difference["value"] <= difference["hi"]
