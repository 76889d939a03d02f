"""The whole study in bfloat16 with LoRA: anchors are measured with their adapters kept, all the way to the verdict."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small import small_config

from caryatid.anchors import open_anchor
from caryatid.attacks.gcg import steps
from caryatid.errors import InputError
from caryatid.models.adapters import AdaptedLinear
from caryatid.progress import NO_PROGRESS
from caryatid.report.tables import read_tables
from caryatid.study.facts import settle_facts
from caryatid.study.flow import run_study
from caryatid.study.recorded import Facts
from caryatid.study.run import open_run
from caryatid.study.runner import execute, opened
from caryatid.study.stages.cases import Cases
from caryatid.study.stages.train import Train
from caryatid.study.table import all_tables


@pytest.mark.slow
def test_a_bfloat16_study_with_lora_runs_and_resumes(tmp_path: Path) -> None:
    config = small_config(
        tmp_path, "model.dtype=bfloat16", "arms=[r2d2]", "anchors=[0, 1]", "attacks.adaptive.enabled=true"
    )
    run = run_study(config, tmp_path / "run").directory
    tables = read_tables(run)
    assert set(tables) == {table.name for table in all_tables()}
    assert {(row["arm"], row["step"]) for row in tables["behaviour"]} == {("base", 0), ("r2d2", 1)}
    assert "adaptive" in {row["attack"] for row in tables["behaviour"]}
    assert {(row["from"], row["to"]) for row in tables["verdict"]} == {(0, 1)}
    ((_, trained),) = open_run(run).each(Train)
    anchor = trained.at(1, run)
    assert len(anchor.adapters) == 2  # the warm-up's and the arm's
    loaded = open_anchor(anchor, dtype="bfloat16", device="cpu")
    kept = [module for module in loaded.model.modules() if isinstance(module, AdaptedLinear)]
    assert len(kept) == 4 * 7
    assert all(module.joined.dtype == torch.bfloat16 for module in kept)
    assert run_study(config, run).executed == 0


def test_what_the_device_can_is_settled_once_and_a_run_from_before_goes_on_as_it_began(
    tmp_path: Path,
) -> None:
    config = small_config(tmp_path, "model.dtype=bfloat16", "warmup.enabled=false")
    facts = settle_facts(config, None).facts
    assert facts.float8
    written = facts.to_json()
    assert Facts.from_json(written) == facts
    del written["float8"]  # as a version before wrote it
    before = Facts.from_json(written)
    assert not before.float8
    assert settle_facts(config, before).facts == before
    single = small_config(tmp_path, "model.dtype=float32", "warmup.enabled=false")
    assert not settle_facts(single, facts).facts.float8


def test_saved_cases_name_how_many_were_rescored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used, decided = [], steps._decided

    def recording(*arguments: Any) -> Any:
        used.append(arguments[-1])
        return decided(*arguments)

    monkeypatch.setattr(steps, "_decided", recording)
    config = small_config(
        tmp_path,
        "model.dtype=bfloat16",
        "warmup.enabled=false",
        *(
            f"attacks.fixed_source.{one}"
            for one in ("search_precision=float8", "width=66", "steps=1", "behaviours=1")
        ),
    )
    with opened(config, tmp_path / "run", NO_PROGRESS, lambda _line: None) as session:
        execute(session, session.plan.upto(Cases))
    (file,) = (tmp_path / "run").glob("stages/cases/*/cases.json")
    assert '"rescored": 64' in file.read_text()
    assert used == [64]


def test_full_training_in_bfloat16_is_refused_before_anything_runs(tmp_path: Path) -> None:
    config = small_config(tmp_path, "model.dtype=bfloat16", "training.mode=full")
    with pytest.raises(InputError, match=r"training\.mode: full training of bfloat16 weights"):
        run_study(config, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("anchor*.json"))
