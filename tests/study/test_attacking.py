"""Attacks of a study: how many behaviours are attacked together, at which anchors, and what a key knows of it."""

from pathlib import Path

import pytest
from small import small_config

from caryatid.attacks.gcg.settings import GcgSettings
from caryatid.attacks.run import goals_together
from caryatid.config import StudyConfig, load_config
from caryatid.models.sizes import BatchSizes
from caryatid.progress import NO_PROGRESS
from caryatid.study.facts import Facts
from caryatid.study.plan import Plan, build_plan
from caryatid.study.run import Run
from caryatid.study.runner import execute, opened
from caryatid.study.stage import Study
from caryatid.study.stages.adaptive import Adaptive
from caryatid.study.stages.cases import Cases
from caryatid.study.tables.attacks import TABLE

# What `plan_batch_sizes` gives on a card of 80 GB for rows of 768 tokens.
SMOLLM2_135M = BatchSizes(forward=256, generate=256, gcg=512, train=16)
QWEN_500M = BatchSizes(forward=256, generate=256, gcg=256, train=8)
MISTRAL_7B = BatchSizes(forward=64, generate=64, gcg=64, train=2)


def plan_of(*overrides: str, device: str = "cpu", batch: BatchSizes | None = None) -> Plan:
    """The plan of the quick preset's study; no model is opened."""
    config = load_config(preset="quick", overrides=overrides)
    sizes = batch or BatchSizes(forward=16, generate=32, gcg=32, train=8)
    return build_plan(
        Study(config, Facts("model", "float32", device, "embedded", "", "prompts", vars(sizes)))
    )


@pytest.mark.parametrize(
    ("batch", "width", "together"),
    [
        (SMOLLM2_135M, 128, 16),
        (SMOLLM2_135M, 512, 16),
        (QWEN_500M, 128, 8),
        (QWEN_500M, 512, 8),
        (QWEN_500M, 64, 16),
        (MISTRAL_7B, 512, 4),
        (MISTRAL_7B, 8, 16),
    ],
)
def test_on_a_gpu_goals_fill_the_planned_forwards(batch: BatchSizes, width: int, together: int) -> None:
    assert goals_together(GcgSettings(width=width), "cuda", batch) == together
    assert goals_together(GcgSettings(width=width), "cpu", batch) == 1


def test_how_many_go_together_is_planned_and_part_of_the_key() -> None:
    few = "attacks.fixed_source.together=3"
    many = "attacks.fixed_source.behaviours=8"
    cpu, named = plan_of(many), plan_of(many, few)
    gpu = plan_of(many, device="cuda", batch=QWEN_500M)
    stages = [plan["cases/seed0"] for plan in (cpu, gpu, named)]
    assert [stage.inputs["settings"]["attack"]["together"] for stage in stages] == [1, 8, 3]
    assert len({stage.key for stage in stages}) == 3
    assert "3 together" in stages[2].stage.size()
    assert plan_of(many, "attacks.fixed_source.together=1")["cases/seed0"].key == cpu["cases/seed0"].key
    two = plan_of("attacks.fixed_source.behaviours=2", device="cuda", batch=QWEN_500M)
    assert two["cases/seed0"].inputs["settings"]["attack"]["together"] == 2


def attacked(config: StudyConfig, out: Path) -> Run:
    """A run directory with the study's attacks, and what they need, done."""
    with opened(config, out, NO_PROGRESS, lambda _line: None) as session:
        execute(session, session.plan.upto(Cases, Adaptive))
        return Run(session.plan, session.run)


def test_the_table_names_how_many_went_together(tmp_path: Path) -> None:
    few = ("warmup.enabled=false", "attacks.fixed_source.together=2")
    run = attacked(small_config(tmp_path, *few), tmp_path / "run")
    (row,) = TABLE.rows(run)
    assert (row["attack"], row["cases"], row["together"], row["steps"]) == ("fixed_source", 2, 2, 1)
    assert {column.name for column in TABLE.columns} == set(row)
