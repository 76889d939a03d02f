"""Configuration: presets load, and every mistake is reported at once with its place."""

from pathlib import Path

import pytest

from caryatid.config import StudyConfig, dump_config, load_config, parse_config, preset_names
from caryatid.config.names import PROMPT_SETS
from caryatid.data.study_prompts import ROLES
from caryatid.errors import ConfigError


def _problems(**arguments: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(**arguments)  # type: ignore[arg-type]
    return list(caught.value.problems) or [str(caught.value)]


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_valid_and_round_trip(name: str) -> None:
    config = load_config(preset=name)
    assert config.name == name
    assert parse_config(dump_config(config), "text") == config


def test_mistral_preset_has_the_released_values() -> None:
    r2d2 = load_config(preset="mistral-7b").training.r2d2
    released = (8, 5, 512, 256, 50, 0.2, 180)
    assert (
        r2d2.cases,
        r2d2.gcg_steps,
        r2d2.width,
        r2d2.top_k,
        r2d2.restart_every,
        r2d2.restart_fraction,
        r2d2.pool,
    ) == released
    training = load_config(preset="mistral-7b").training
    assert training.accumulation * r2d2.cases * r2d2.gcg_steps == 160
    # The released 2e-5 is of full fine-tuning; adapters learn at ten times that.
    assert (training.mode, training.learning_rate) == ("lora", 2e-4)


def test_quick_trains_gently_toward_step_0s_own_refusal() -> None:
    """At twice the rate more draws lack an admissible carrier than 50 re-extractions bear (log)."""
    training = load_config(preset="quick").training
    weights = (training.r2d2.away_weight, training.r2d2.toward_weight)
    assert (training.learning_rate, *weights) == (1e-4, 0.5, 0.5)
    assert training.r2d2.toward_text == "I'm sorry, but I can't assist with that."


def test_all_errors_at_once_with_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        "name: a\nmodle: 3\ntraining:\n  lerning_rate: 3\n  mode: half\nanchors: [0, 5, 3]\nseeds: [0, x]\n"
    )
    problems = _problems(file=file)
    assert len(problems) == 5
    joined = "\n".join(problems)
    assert f"{file}:2:1: modle: unknown key; did you mean 'model'?" in joined
    assert f"{file}:4:3: training.lerning_rate: unknown key; did you mean 'learning_rate'?" in joined
    assert f"{file}:5:3: training.mode: " in joined
    assert f"{file}:6:1: anchors: must start at 0 and increase, got [0, 5, 3]" in joined
    assert f"{file}:7:12: seeds.1: " in joined


def test_override_errors_name_the_override() -> None:
    assert _problems(preset="quick", overrides=["training.r2d2.wdth=3"]) == [
        "--set training.r2d2.wdth=3: training.r2d2.wdth: unknown key; did you mean 'width'?"
    ]
    assert "KEY=VALUE" in _problems(preset="quick", overrides=["seeds"])[0]


def test_unknown_preset_lists_the_known() -> None:
    assert "quick" in _problems(preset="quik")[0]


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "a: b: c"])
def test_broken_yaml_names_the_place(tmp_path: Path, text: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    assert _problems(file=file)[0].startswith(f"{file}:")


def test_missing_file_is_a_config_error(tmp_path: Path) -> None:
    assert "cannot be read" in _problems(file=tmp_path / "none.yaml")[0]


def test_overrides_and_extends(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: quick\ntraining:\n  r2d2:\n    width: 24\n")
    config = load_config(file=file, overrides=["training.learning_rate=1e-4", "seeds=[3, 4]"])
    quick = load_config(preset="quick")
    assert config.training.r2d2.width == 24
    assert config.training.r2d2.cases == quick.training.r2d2.cases
    assert config.training.learning_rate == 1e-4
    assert config.seeds == (3, 4)


def test_options_are_those_of_the_method_that_had_them(tmp_path: Path) -> None:
    quick = load_config(preset="quick").attacks.fixed_source
    assert (quick.method, quick.options) == ("templates", {"file": "embedded-refusing"})
    file = tmp_path / "mine.yaml"
    file.write_text("extends: quick\nattacks:\n  fixed_source: {method: gcg, steps: 7}\n")
    mine = load_config(file=file).attacks.fixed_source
    assert (mine.method, mine.options, mine.steps, mine.behaviours) == ("gcg", {}, 7, quick.behaviours)
    file.write_text("extends: quick\nattacks:\n  fixed_source: {behaviours: 7}\n")
    assert load_config(file=file).attacks.fixed_source.options == quick.options
    where = "attacks.fixed_source"
    for sets in ([f"{where}.method=gcg"], [f"{where}.width=9", f"{where}.method=gcg"]):
        assert load_config(preset="quick", overrides=sets).attacks.fixed_source.options == {}
    file.write_text("extends: quick\nattacks: {fixed_source: {options: {steps: 3}}}\n")
    own = load_config(file=file, overrides=[f"{where}.method=autodan"]).attacks.fixed_source
    assert (own.method, own.options) == ("autodan", {"steps": 3})
    whole = [f"{where}={{behaviours: 4}}", f"{where}.method=autodan"]  # in the order given
    found = load_config(preset="quick", overrides=whole).attacks.fixed_source
    assert (found.method, found.behaviours, found.options) == ("autodan", 4, {})
    sets = [f"{where}.options.steps=3", f"{where}.method=autodan"]  # in either order
    for order in (sets, sets[::-1]):
        assert load_config(preset="quick", overrides=order).attacks.fixed_source.options == {"steps": 3}
    kept = load_config(preset="quick", overrides=[f"{where}.method=templates"]).attacks.fixed_source
    assert kept.options == quick.options
    with pytest.raises(ConfigError, match="beside `method`"):
        load_config(preset="quick", overrides=[f"{where}.method=gcg", f"{where}.options.steps=3"])


def test_observed_series(tmp_path: Path) -> None:
    file = tmp_path / "series.yaml"
    file.write_text("anchors:\n  - {step: 10, adapter: a}\n  - {step: 20, adapter: b}\n")
    config = load_config(file=file)
    assert config.observed
    assert [anchor.step for anchor in config.observed_anchors] == [10, 20]
    file.write_text("anchors:\n  - {step: 10, adaptor: a}\n")
    (problem,) = _problems(file=file)
    assert problem.startswith(f"{file}:2:16: anchors.0.adaptor: unknown key")
    file.write_text("anchors:\n  - {step: 10, adapter: a}\n  - {step: 5, adapter: b}\n")
    assert "must increase" in _problems(file=file)[0]


def test_the_names_of_prompt_sets_are_those_of_a_study() -> None:
    assert set(PROMPT_SETS) == set(ROLES)


def test_config_is_frozen() -> None:
    config = StudyConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"  # type: ignore[misc]


def test_a_device_map_is_a_word_or_a_mapping_and_stands_alone() -> None:
    for text, value in (
        ("auto", "auto"),
        ("{model.layers.0: 1, lm_head: cpu}", {"model.layers.0": 1, "lm_head": "cpu"}),
    ):
        config = load_config(preset="quick", overrides=[f"model.device_map={text}"])
        assert config.model.placed("cuda") == {"device_map": value}
        assert parse_config(dump_config(config), "text") == config
    assert load_config(preset="quick").model.placed("cuda") == {"device": "cuda"}
    for wrong in (
        "model.device_map=everywhere",
        "model.device_map={}",
        "model={device: cpu, device_map: auto}",
    ):
        assert any("device_map" in problem for problem in _problems(preset="quick", overrides=[wrong]))
