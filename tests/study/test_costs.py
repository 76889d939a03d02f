"""How much work stages say they are, against what a finished study did; and a device that is timed once."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from small import small_config

from caryatid.attacks.gcg.settings import GcgSettings
from caryatid.cli import run as command
from caryatid.config import dump_config, load_config
from caryatid.config.load import preset_names
from caryatid.data.study_prompts import ROLES
from caryatid.study import calibration
from caryatid.study.attack_clock import Stepped
from caryatid.study.calibration import Rates, kept_rates, measured_rates
from caryatid.study.costs import NOTHING, TIMED, ModelSizes, Sizes, WorkUnits, decoding, scoring, sizes_of
from caryatid.study.facts import Facts
from caryatid.study.forecast import Forecast, best_forecast, kept_forecast
from caryatid.study.plan import build_plan
from caryatid.study.run import Run, open_run
from caryatid.study.runner import planned
from caryatid.study.series import AnchorRef, ArmRef, SeedRef
from caryatid.study.stage import Study
from caryatid.study.stages.answers import Answers
from caryatid.study.stages.candidates import ScoredCandidates, candidate_count
from caryatid.study.stages.cases import Cases
from caryatid.study.stages.interventions import Interventions
from caryatid.study.stages.prompts import Prompts
from caryatid.study.stages.selection import Selection
from caryatid.study.stages.train import Train
from caryatid.study.stages.transfer import Transfer
from tiny import tiny_model

BASE, LAST = AnchorRef(0, "base", 0), AnchorRef(0, "r2d2", 2)
COSTS_NOTHING = {"prompts", "harm", "carrier", "uncertainty", "rank", "probe", "refusal_tokens", "verdict"}


@pytest.fixture(scope="module")
def run(finished: Path) -> Run:
    return open_run(finished)


@pytest.fixture(scope="module")
def sizes(run: Run) -> Sizes:
    return sizes_of(run.config, run.of(Prompts))


def test_units_add_and_multiply() -> None:
    two = decoding(5, 10.0, 3, batch=4)
    before = 5 * sum(10.0 + done for done in (0.5, 1.5, 2.5))  # tokens before the middle of each decoded one
    assert two == WorkUnits(passes=2, tokens=50, steps=6, decoded=15, attended=before)
    assert two + scoring(2, 7.0, 8, 3) == replace(two, passes=3, tokens=64, logits=6)
    assert (two * 0.5).decoded == 7.5


def test_sizes_are_those_of_the_model_and_its_adapters(run: Run, sizes: Sizes) -> None:
    assert (sizes.model.layers, sizes.model.width) == (4, 32)
    assert sizes.model.parameters == sum(value.numel() for value in tiny_model().parameters())
    adapter = run.path / str(run.of(Train, ArmRef(0, "sft")).anchors[-1]["adapters"][-1])
    with safe_open(adapter / "adapter_model.safetensors", framework="numpy") as stored:
        trained = [stored.get_tensor(name).size for name in stored.keys()]  # noqa: SIM118  # safetensors' reader is no mapping, it has only keys()
    assert sum(trained) == run.config.training.lora.r * sizes.model.adapter
    assert sizes.counts["harmbench"] == 4
    assert sizes.tokens["harmbench"] > sizes.model.prefix + sizes.model.positions


def test_every_kind_that_takes_the_model_says_how_much(run: Run, sizes: Sizes) -> None:
    for entry in run.plan:
        units = entry.stage.work_units(sizes)
        assert (units == NOTHING) == (entry.stage.kind in COSTS_NOTHING), entry.id


@pytest.mark.parametrize("preset", preset_names())
def test_every_stage_of_every_preset_has_finite_work(preset: str) -> None:
    """With seeds, nulls and adaptive attacks, so that all kinds are there; no model and no prompts are needed."""
    wanted = ("seeds=[0,1]", "nulls.redraws=2", "attacks.adaptive.enabled=true")
    config = load_config(preset=preset, overrides=wanted)
    batch = {"forward": 32, "generate": 32, "gcg": 64, "train": 8}
    facts = Facts("model", "bfloat16", "cpu", "benchmarks", "", "", batch)
    sizes = Sizes(
        ModelSizes(layers=30, width=576, positions=5, prefix=20, parameters=10**8, adapter=10**5),
        dict.fromkeys(ROLES, 100),
        dict.fromkeys(ROLES, 40.0),
    )
    plan = build_plan(Study(config, facts))
    forecast = Forecast.of(plan, sizes, Rates(dict.fromkeys(TIMED, 0.01)))
    assert {"null", "regime", "adaptive"} <= {entry.stage.kind for entry in plan}
    assert all(0 <= cost.seconds < float("inf") and cost.memory >= 0 for cost in forecast.costs.values())
    full = config.training.mode == "full"
    kept = 4 * len(config.steps[1:]) * (10**8 if full else config.training.lora.r * 10**5)
    assert forecast.costs["train/r2d2/seed0"].disk == kept


def test_answers_are_as_many_as_were_given(run: Run, sizes: Sizes) -> None:
    limit = run.config.behaviour.max_new_tokens
    for kind, place, rows in (
        (Answers, LAST, len(run.of(Answers, LAST).rows)),
        (Selection, LAST, len(run.of(Selection, LAST).harmful) + len(run.of(Selection, LAST).harmless)),
    ):
        assert kind(run.study, place).work_units(sizes).decoded == rows * limit


def test_transfer_answers_under_every_source_and_subspace(run: Run, sizes: Sizes) -> None:
    stage, limit = Transfer(run.study, LAST), run.config.behaviour.max_new_tokens
    found = run.of(Transfer, LAST)
    refused = replace(sizes, refusal_rate=len(found.prompts) / len(found.asked))
    given = sum(map(len, found.answers.values()))
    assert stage.work_units(refused).decoded == given * limit
    names = {(source, rank) for source in (*stage.sources, *range(8)) for rank in (1, 3)}
    assert stage.work_units(replace(sizes, refusal_rate=1.0)).decoded == len(names) * len(found.asked) * limit


def test_attacks_and_training_are_as_long_as_they_were(run: Run, sizes: Sizes) -> None:
    budget, units = run.of(Cases, SeedRef(0)).budget, Cases(run.study, SeedRef(0)).work_units(sizes)
    assert units.attack_steps == budget["cases"] * budget["steps"]
    assert units.attacks == budget["cases"]
    assert units.candidates == units.attack_steps * run.config.attacks.fixed_source.width
    assert budget["candidates"] <= units.candidates
    for arm in ("sft", "r2d2"):
        last = run.of(Train, ArmRef(0, arm)).rows[-1]
        units = Train(run.study, ArmRef(0, arm)).work_units(sizes)
        assert units.attack_steps == last["gcg_steps"]
        assert units.trained == pytest.approx(last["tokens"], rel=0.3)


def test_candidates_and_conditions_are_as_many_as_there_were(run: Run, sizes: Sizes) -> None:
    assert candidate_count(run.config, sizes) - len(run.of(ScoredCandidates, BASE).scores) in (
        0,
        1,
    )  # zero at block 0
    for place in (BASE, LAST):
        counted, _ = Interventions(run.study, place)._counts(True)
        assert 0 <= counted - run.of(Interventions, place).conditions <= 3, place


def test_stages_that_are_one_cost_once(place: Path, sizes: Sizes) -> None:
    plan = planned(small_config(place, "seeds=[0,1]", "warmup.enabled=false"))
    forecast = Forecast.of(plan, sizes, Rates(dict.fromkeys(TIMED, 1.0)))
    one, two = (plan[f"activations/base@0/seed{seed}"] for seed in (0, 1))
    assert one.key == two.key
    assert forecast.seconds[one.id] > 0
    assert forecast.seconds[two.id] == 0


def test_a_device_is_timed_once(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CARYATID_CACHE", str(tmp_path))
    plan = planned(small_config(place))
    assert kept_forecast(plan, None) is None
    guess = best_forecast(plan, None)
    assert guess is not None
    assert guess.guessed
    assert min(guess.seconds[entry.id] for entry in plan if entry.stage.kind in ("train", "answers")) > 0
    rates = measured_rates(plan.study)
    assert rates.seconds.keys() == set(TIMED)
    assert rates.seconds["loaded"] > 0
    assert rates.seconds["adapted"] > 0
    assert min(rates.seconds.values()) >= 0  # some are differences, which a busy machine can make 0

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded again")

    monkeypatch.setattr(calibration, "load_model", fail)
    assert kept_rates(plan.study) == rates == measured_rates(plan.study)
    with pytest.raises(AssertionError, match="loaded again"):
        measured_rates(plan.study, again=True)
    other = planned(small_config(place, "batch.forward=8"))
    assert kept_rates(other.study) is None
    found = kept_forecast(plan, None)
    assert found is not None
    assert found.seconds.keys() == {entry.id for entry in plan}
    best = best_forecast(plan, None)
    assert best == found
    assert not best.guessed
    calibration.calibration_file(plan.study).write_text("{", encoding="utf-8")
    with caplog.at_level("WARNING"):
        assert best_forecast(plan, None) is None
    assert "the time left cannot be estimated" in caplog.text


@pytest.mark.parametrize("apart", [True, False])
def test_an_attack_is_priced_by_its_gradient_its_candidates_and_its_beginning(
    apart: bool, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes 0.5 s and 0.01 s a candidate, an attack 2 s before it; the larger one may not tell them apart."""

    def timed(_loaded: Any, _chat: Any, _goals: Any, settings: GcgSettings, *_: Any) -> Stepped:
        step = 0.5 + 0.01 * settings.width
        if settings.width > calibration.FEW and not apart:
            return Stepped(step + 2.0, 0.0, apart=False)
        return Stepped(step, 2.0)

    monkeypatch.setattr(calibration, "timed_attack", timed)
    measured = calibration._Calibration(planned(small_config(place)).study)
    measured._attack(measured._load())
    assert measured.seconds["candidates"] == pytest.approx(0.01)
    assert measured.seconds["attack_steps"] == pytest.approx(0.5)
    assert measured.seconds["attacks"] == pytest.approx(2.0)


def test_on_a_slow_device_one_width_must_do(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []

    def timed(_loaded: Any, _chat: Any, _goals: Any, settings: GcgSettings, *_: Any) -> Stepped:
        widths.append(settings.width)
        return Stepped(14.0, 3.0)

    monkeypatch.setattr(calibration, "timed_attack", timed)
    measured = calibration._Calibration(planned(small_config(place)).study)
    measured._attack(measured._load())
    assert set(widths) == {calibration.FEW}
    assert measured.seconds["candidates"] == pytest.approx(2.0)
    assert measured.seconds["attack_steps"] == pytest.approx(6.0)


def test_rates_are_of_one_kind_of_attack(place: Path) -> None:
    """Another width, or another number of goals together, is timed anew; other numbers of steps are not."""

    def file(*sets: str) -> Path:
        return calibration.calibration_file(planned(small_config(place, *sets)).study)

    assert file("attacks.fixed_source.steps=7") == file()
    assert file("attacks.fixed_source.width=7") != file()
    assert file("attacks.fixed_source.together=2") != file()


def test_the_plan_shows_time_memory_and_disk_and_what_is_left(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARYATID_CACHE", str(tmp_path))
    file = finished.parent / "plan.yaml"
    file.write_text(dump_config(open_run(finished).config))
    assert command(["study", "plan", "--config", str(file), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    stages = {row["id"]: row for row in shown["stages"]}
    assert shown["forecast"]["seconds"] == pytest.approx(sum(row["seconds"] for row in stages.values()))
    assert stages["train/r2d2/seed0"]["seconds"] > 0
    assert stages["train/r2d2/seed0"]["disk"] > 0
    assert stages["activations/base@0/seed0"]["memory"] > stages["carrier/base@0/seed0"]["memory"]
    assert command(["study", "plan", "--config", str(file), "--out", str(finished), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["forecast"]["left"] == 0
