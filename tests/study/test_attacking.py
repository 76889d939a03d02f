"""Attacks of a study: how many behaviours are attacked together, at which anchors, and what a key knows of it."""

from collections import Counter
from pathlib import Path

import pytest
from small import small_config

from caryatid.attacks.gcg.settings import GcgSettings
from caryatid.attacks.run import goals_together
from caryatid.config import StudyConfig, load_config
from caryatid.errors import ConfigError
from caryatid.models.sizes import BatchSizes
from caryatid.progress import NO_PROGRESS
from caryatid.study.facts import Facts
from caryatid.study.plan import Plan, build_plan
from caryatid.study.run import Run
from caryatid.study.runner import execute, opened
from caryatid.study.series import SeedRef
from caryatid.study.stage import Study
from caryatid.study.stages.adaptive import Adaptive
from caryatid.study.stages.cases import Cases
from caryatid.study.stages.prompts import Prompts
from caryatid.study.tables.attacks import TABLE

# What `plan_batch_sizes` gives on a card of 80 GB for rows of 768 tokens.
SMOLLM2_135M = BatchSizes(forward=256, generate=256, gcg=512, train=16)
QWEN_500M = BatchSizes(forward=256, generate=256, gcg=256, train=8)
MISTRAL_7B = BatchSizes(forward=64, generate=64, gcg=64, train=2)


GCG = "attacks.fixed_source.method=gcg"


def plan_of(*overrides: str, device: str = "cpu", batch: BatchSizes | None = None) -> Plan:
    """The plan of the quick preset's study, with GCG on step 0; no model is opened."""
    config = load_config(preset="quick", overrides=[GCG, *overrides])
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


FLOAT8 = ("bfloat16", "cuda", True)


@pytest.mark.parametrize(
    ("dtype", "device", "float8", "overrides", "rescored"),
    [
        ("float32", "cuda", False, (), 8),
        ("bfloat16", "cuda", False, (), 8),  # a card without it, or a run begun before it was recorded
        ("bfloat16", "cpu", True, (), 8),  # `auto` ranks nothing there
        ("bfloat16", "cpu", True, ("search_precision=float8",), 64),
        (*FLOAT8, (), 8),  # float8 must be named
        (*FLOAT8, ("search_precision=float8",), 64),
        (*FLOAT8, ("search_precision=float8", "width=300"), 150),
        (*FLOAT8, ("search_precision=float8", "rescored=8"), 8),
        (*FLOAT8, ("search_precision=float8", "rescored=100"), 100),
        ("float32", "cuda", False, ("rescored=9",), 9),
    ],
)
def test_how_many_are_rescored_follows_the_precision_and_is_part_of_the_key(
    dtype: str, device: str, float8: bool, overrides: tuple[str, ...], rescored: int
) -> None:
    batch = vars(QWEN_500M)
    facts = Facts("model", dtype, device, "embedded", "", "prompts", batch, float8=float8)
    named = [GCG, *(f"attacks.fixed_source.{one}" for one in overrides)]
    study = Study(load_config(preset="quick", overrides=named), facts)
    stage = build_plan(study)["cases/seed0"]
    assert stage.inputs["settings"]["attack"]["rescored"] == rescored
    assert isinstance(stage.stage, Cases)
    searched = stage.stage.searched
    assert isinstance(searched, GcgSettings)
    assert searched.rescored == rescored
    explicit = load_config(preset="quick", overrides=[*named, f"attacks.fixed_source.rescored={rescored}"])
    assert build_plan(Study(explicit, facts))["cases/seed0"].key == stage.key


def test_another_attack_keeps_its_key_where_float8_is() -> None:
    config = load_config(preset="quick", overrides=["attacks.fixed_source.method=templates"])
    keys = set()
    for float8 in (False, True):
        facts = Facts("model", "bfloat16", "cuda", "embedded", "", "", vars(QWEN_500M), float8=float8)
        entry = build_plan(Study(config, facts))["cases/seed0"]
        assert entry.inputs["settings"]["attack"]["rescored"] == 8
        keys.add(entry.key)
    assert len(keys) == 1


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


def adaptive_at(at: str, *overrides: str) -> list[str]:
    """Where a study with three anchors and two arms makes adaptive cases."""
    study = ("arms=[sft, r2d2]", "anchors=[0, 5, 9]", "attacks.adaptive.enabled=true")
    plan = plan_of(*study, f"attacks.adaptive.at={at}", *overrides)
    answered = {
        entry.stage.place.name
        for entry in plan
        if entry.stage.kind == "answers" and any(need.stage.kind == "adaptive" for need in entry.needs)
    }
    found = [stage.place.name for stage in plan.of(Adaptive)]
    assert answered == set(found)  # an anchor's answers are asked under the cases that are made for it
    return sorted(found)


def test_adaptive_attacks_are_made_where_they_are_wanted() -> None:
    trained = ["r2d2@5", "r2d2@9", "sft@5", "sft@9"]
    assert adaptive_at("all") == [f"{name}/seed0" for name in ["base@0", *trained]]
    assert adaptive_at("last") == ["r2d2@9/seed0", "sft@9/seed0"]
    assert adaptive_at("last", "seeds=[0, 4]") == [f"{a}@9/seed{s}" for a in ("r2d2", "sft") for s in (0, 4)]
    assert adaptive_at("[0, 9]") == ["base@0/seed0", "r2d2@9/seed0", "sft@9/seed0"]
    assert adaptive_at("[5]") == ["r2d2@5/seed0", "sft@5/seed0"]
    assert adaptive_at("all", "attacks.adaptive.enabled=false") == []


def test_observed_series_are_attacked_at_their_last_checkpoint() -> None:
    rows = [("a", 10), ("a", 20), ("b", 15)]
    listed = ", ".join(f"{{arm: {arm}, step: {step}, adapter: somewhere}}" for arm, step in rows)
    config = load_config(
        preset="quick",
        overrides=[f"anchors=[{listed}]", "attacks.adaptive.enabled=true", "attacks.adaptive.at=last"],
    )
    facts = Facts("model", "float32", "cpu", "embedded", "", "prompts", vars(QWEN_500M), ("x", "y", "z"))
    assert [place.name for place in Adaptive.places(Study(config, facts))] == ["a@20/seed0", "b@15/seed0"]


@pytest.mark.parametrize(
    ("at", "words"), [("[0, 7]", "must name steps"), ("[]", "must name"), ("first", "at")]
)
def test_steps_that_no_anchor_has_are_refused(at: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan_of("anchors=[0, 5]", f"attacks.adaptive.at={at}")


def test_where_cases_are_made_is_no_part_of_their_key_and_the_seed_is() -> None:
    on = ("attacks.adaptive.enabled=true", "seeds=[0, 1]", "warmup.enabled=false", "anchors=[0, 5]")
    everywhere, chosen = plan_of(*on), plan_of(*on, "attacks.adaptive.at=[0]")
    first, second = (everywhere[f"adaptive/base@0/seed{seed}"] for seed in (0, 1))
    assert chosen[first.id].key == first.key != second.key


def test_attacked_behaviours_are_a_seeded_sample_over_categories(tmp_path: Path) -> None:
    """Of the requests that a judge can be asked about: spread over kinds and categories, another one for each seed."""
    more = ("warmup.enabled=false", "seeds=[0, 1]", "prompts.limits.harmbench=0")
    attack = "attacks.fixed_source={behaviours: 9, steps: 0, width: 4, top_k: 8, suffix_length: 3}"
    run = attacked(small_config(tmp_path, *more, attack), tmp_path / "run")
    harmbench = run.of(Prompts, None).harmbench
    judged = [row for row in harmbench if row.kind != "copyright"]
    rows = {row.id: row for row in judged}
    chosen = [[case.behavior_id for case in run.of(Cases, SeedRef(seed)).cases] for seed in (0, 1)]
    assert chosen[0] != chosen[1]
    groups = Counter((row.kind, row.category) for row in judged)
    assert len(groups) > 3
    for ids in chosen:
        assert len(set(ids)) == 9
        assert ids != [row.id for row in judged[:9]]
        attacked_groups = Counter((rows[name].kind, rows[name].category) for name in ids)
        for group, count in groups.items():  # each group has its share, to within one
            assert abs(attacked_groups[group] - 9 * count / len(judged)) < 1
