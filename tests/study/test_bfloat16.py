"""The whole study in bfloat16 with LoRA: anchors are measured with their adapters kept, all the way to the verdict."""

from pathlib import Path

import pytest
import torch
from small import small_config

from caryatid.anchors import open_anchor
from caryatid.errors import InputError
from caryatid.models.adapters import AdaptedLinear
from caryatid.report.tables import read_tables
from caryatid.study.flow import run_study
from caryatid.study.run import open_run
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


def test_full_training_in_bfloat16_is_refused_before_anything_runs(tmp_path: Path) -> None:
    config = small_config(tmp_path, "model.dtype=bfloat16", "training.mode=full")
    with pytest.raises(InputError, match=r"training\.mode: full training of bfloat16 weights"):
        run_study(config, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("anchor*.json"))
