"""What the anchors of an arm depend on: its own part of the training settings, and no other arm's."""

from dataclasses import asdict

import pytest

from caryatid.config import load_config
from caryatid.study.costs import ModelSizes, Sizes
from caryatid.study.facts import Facts
from caryatid.study.plan import Plan, build_plan
from caryatid.study.stage import Study
from caryatid.study.stages.train import Train
from caryatid.training.settings import R2D2Settings, TrainingSettings

ARMS = ("sft", "r2d2", "cat", "lat", "circuit_breakers", "dpo")
BATCH = {"forward": 16, "generate": 32, "gcg": 32, "train": 8}
PARTS = {"cat", "lat", "circuit_breakers", "dpo"}


def plan_of(*overrides: str) -> Plan:
    """The plan of the quick preset with every kind of arm; no model is opened."""
    config = load_config(preset="quick", overrides=[f"arms=[{', '.join(ARMS)}]", *overrides])
    return build_plan(Study(config, Facts("model", "float32", "cpu", "embedded", "", "prompts", BATCH)))


def test_a_setting_of_one_arm_trains_that_arm_anew() -> None:
    plain = plan_of()
    for setting, arm in (("cat.steps=3", "cat"), ("lat.radius=0.1", "lat"), ("dpo.beta=0.2", "dpo"),
                         ("circuit_breakers.alpha=5", "circuit_breakers")):  # fmt: skip
        other = plan_of(f"training.{setting}")
        changed = {
            name for name in ARMS if other[f"train/{name}/seed0"].key != plain[f"train/{name}/seed0"].key
        }
        assert changed == {arm}
    everyone = plan_of("training.learning_rate=0.5")
    assert all(everyone[f"train/{name}/seed0"].key != plain[f"train/{name}/seed0"].key for name in ARMS)


def test_arms_depend_on_what_they_always_did() -> None:
    """Settings of the published arms have the fields that they had before there were others; where weights lie
    while they are trained is none."""
    for name in ARMS:
        settings = plan_of()[f"train/{name}/seed0"].inputs["settings"]["training"]
        assert set(settings) == (set(asdict(TrainingSettings())) - PARTS - {"shard"}) | ({name} & PARTS)
        assert set(settings["r2d2"]) == set(asdict(R2D2Settings())) - {"rescored"}


FLOAT8 = ("training.r2d2.width=300", "training.r2d2.search_precision=float8")


def test_the_inner_attack_rescores_more_where_float8_ranks_and_as_many_as_are_asked_for() -> None:
    def train(float8: bool, *overrides: str) -> Train:
        config = load_config(preset="quick", overrides=[*FLOAT8, *overrides])
        facts = Facts("model", "bfloat16", "cuda", "embedded", "", "prompts", BATCH, float8=float8)
        stage = build_plan(Study(config, facts))["train/r2d2/seed0"].stage
        assert isinstance(stage, Train)
        return stage

    def of_key(stage: Train) -> object:
        return stage.settings()["training"]["r2d2"].get("rescored")

    own, eight, named = train(False), train(True), train(True, "training.r2d2.rescored=20")
    assert [one.trained.r2d2.rescored for one in (own, eight, named)] == [8, 150, 20]
    assert [of_key(one) for one in (own, eight, named)] == [None, 150, 20]
    assert [one.trained.r2d2.gcg(1).rescored for one in (own, eight, named)] == [8, 150, 20]
    assert train(True, "training.r2d2.rescored=8").settings() == own.settings()


def test_forecasts_count_the_passes_of_inner_attacks() -> None:
    """Beside `refusal_sft` with as many rows: 1 + 10/2 times the cases' tokens for C-AdvUL, 1 + 16 times for LAT."""
    counts = {"pool": 8, "chat": 8, "chat_heldout": 4}
    model = ModelSizes(layers=30, width=576, positions=5, prefix=20, parameters=10**8, adapter=10**5)
    sizes = Sizes(model, counts, dict.fromkeys(counts, 20.0))
    plan = plan_of()
    trained = {name: plan[f"train/{name}/seed0"].stage.work_units(sizes).trained for name in ARMS}
    cases = trained["dpo"] - trained["sft"]
    assert cases > 0
    assert trained["cat"] - trained["sft"] == pytest.approx(6 * cases)
    assert trained["lat"] - trained["sft"] == pytest.approx(17 * cases)
