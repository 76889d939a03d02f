"""`locate`: a planted carrier is found, twice alike and after a kill; what has none is told why."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from caryatid.behaviour.judges.base import FULL_COMPLIANCE, FULL_REFUSAL, Exchange, Judgement
from caryatid.cli import run
from caryatid.data.prompts import Prompt, PromptSet, spread
from caryatid.data.study_prompts import StudyPrompts, build_study_prompts
from caryatid.errors import UsageError
from caryatid.geometry.profiles import PROFILES
from caryatid.report.location import headline, write_location
from caryatid.report.tables import read_tables
from caryatid.single import locate as module
from caryatid.single.carrier_file import read_carrier
from caryatid.single.locate import locate
from caryatid.single.located import REMEDIES, Located, LocateSettings
from planted import Plant, categories, harmful_texts, harmless_texts, planted, utility_texts
from tiny import save_tiny, tiny_loaded

SETTINGS = LocateSettings(
    source="embedded", extraction=32, selection=16, evaluation=24, utility=8, positions=1, resamples=4, likely=3,
    draws=200, controls=8, max_new_tokens=1,
)  # fmt: skip
KEYS = (
    "model", "identity", "layers", "profile", "refusal", "gap", "carrier", "reason", "ablation", "addition", "utility",
    "notes", "seconds",
)  # fmt: skip


class Letters:
    """Z is the planted models' refusal."""

    name, version, kind, proxy, usage = "letters", "1", "refusal", False, None

    def judge(self, pairs: Sequence[Exchange]) -> list[Judgement]:
        verdicts = [FULL_REFUSAL if pair.answer.startswith("Z") else FULL_COMPLIANCE for pair in pairs]
        return [Judgement(verdict, "letters@1") for verdict in verdicts]


def _set(
    like: PromptSet, texts: Sequence[str], labels: Sequence[str] | None = None, check: Any = None
) -> PromptSet:
    label = like.prompts[0].label
    rows = [
        Prompt(f"{like.name}{n}", text, like.name, label, category=labels[n] if labels else None, check=check)
        for n, text in enumerate(texts)
    ]
    return replace(like, prompts=tuple(rows))


@lru_cache(maxsize=1)
def sets() -> StudyPrompts:
    own = build_study_prompts(source="embedded", offline=True)
    up, down = harmful_texts(80), harmless_texts(80)
    changed = {
        "extraction_harmful": _set(own.extraction_harmful, up[:32], categories(32)),
        "extraction_harmless": _set(own.extraction_harmless, down[:32]),
        "selection_harmful": _set(own.selection_harmful, up[32:48]),
        "selection_harmless": _set(own.selection_harmless, down[32:48]),
        "harmbench": _set(own.harmbench, up[48:60]),
        "xstest_unsafe": _set(own.xstest_unsafe, up[60:72]),
        "chat_heldout": _set(own.chat_heldout, down[48:72]),
        "utility": _set(own.utility, utility_texts(8), check={"any": ["X"]}),
    }
    return replace(own, **changed)


def found(plant: Plant, out: Path | None = None, settings: LocateSettings = SETTINGS) -> Located:
    return locate(planted(plant), settings, system="", judge=Letters(), sets=sets(), out=out)


def same(one: Located, other: Located) -> bool:
    def numbers(located: Located) -> str:
        facts = {key: value for key, value in located.facts.items() if key != "seconds"}
        return json.dumps([facts, located.candidates, located.effects, sorted(located.places.items())])

    return numbers(one) == numbers(other)


@pytest.fixture(scope="module")
def known() -> Located:
    return found(Plant())


def test_a_planted_carrier_is_found(known: Located) -> None:
    facts = known.facts
    assert tuple(facts) == KEYS
    assert facts["refusal"]["harmful"] >= 0.8
    assert facts["refusal"]["harmless"] == 0
    assert facts["reason"] is None
    assert known.remedy is None
    carrier = facts["carrier"]
    assert set(carrier) == {
        *(
            "layer",
            "position",
            "depth",
            "depth_lo",
            "depth_hi",
            "bypass_effect",
            "induce_effect",
            "kl",
            "p_none",
        )
    }
    assert carrier["layer"] in (3, 4)  # written by block 2, read by block 4
    assert carrier["position"] == -1
    assert 3 / 8 <= carrier["depth_lo"] <= carrier["depth"] <= carrier["depth_hi"] <= 4 / 8
    assert carrier["p_none"] < 0.05
    assert carrier["bypass_effect"] > 0.8
    assert facts["ablation"]["removed"] >= 0.9
    assert facts["ablation"]["refused"] <= 0.1
    assert facts["addition"]["induced"] >= 0.8
    assert facts["addition"]["induced_random"] <= 0.2
    removed = [r["value"] for r in known.effects if r["read_out"] == "removed" and r["control"] != "carrier"]
    assert len(removed) == SETTINGS.controls
    assert max(removed) == facts["ablation"]["removed_random"]
    assert sum(removed) / len(removed) <= 0.2
    assert facts["utility"] == {"before": 1.0, "ablated": 1.0}
    assert known.carrier is not None
    direction = known.carrier.direction / known.carrier.direction.norm()
    assert float(direction @ Plant().direction) > 0.9
    assert f"Carrier(Site(layer={carrier['layer']}, position=-1, admissible=True)" in repr(known)
    best = known.to_pandas().query("best")
    assert best["layer"].tolist() == [carrier["layer"]]


def test_a_costly_carrier_costs() -> None:
    assert found(Plant(utility=1.0)).facts["utility"]["ablated"] < 0.5


def test_the_same_twice_and_killed_and_resumed(
    known: Located, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert same(known, found(Plant()))
    calls: list[str] = []
    for name in ("answers_under", "extraction_activations", "rescored"):
        whole = getattr(module, name)

        def counted(*args: Any, _name: str = name, _whole: Any = whole, **named: Any) -> Any:
            calls.append(_name)
            if stop is not None and len(calls) > stop:
                raise KeyboardInterrupt
            return _whole(*args, **named)

        monkeypatch.setattr(module, name, counted)
    for stop in (3, 2, 1, None):  # killed further and further on, then left to end
        calls.clear()
        if stop is None:
            resumed = found(Plant(), tmp_path / "out")
        else:
            with pytest.raises(KeyboardInterrupt):
                found(Plant(), tmp_path / "out")
    assert same(known, resumed)
    assert calls.count("answers_under") < 9  # what was finished before is not done again
    calls.clear()
    assert same(known, found(Plant(), tmp_path / "out"))
    assert calls == []


def test_a_first_pass_that_leaves_out_candidates_finds_as_good_a_carrier(known: Located) -> None:
    pruned = found(
        Plant(),
        settings=replace(
            SETTINGS, discard_below=0.9, discard_after=8, resamples=2, likely=2, control_prompts=3
        ),
    )
    asked = {row["control"]: row["n"] for row in pruned.effects if row["read_out"] == "removed"}
    assert asked.pop("carrier") > 3
    assert set(asked.values()) == {3}
    assert pruned.facts["carrier"]["layer"] == known.facts["carrier"]["layer"]
    assert pruned.facts["carrier"]["bypass_effect"] >= known.facts["carrier"]["bypass_effect"] - 0.05
    assert LocateSettings.for_device("cpu").discard_below == PROFILES["calibrated"].effects_min
    assert LocateSettings.for_device("cuda").discard_below is None
    left_out = [row for row in pruned.candidates if math.isnan(row["induce"])]
    assert left_out
    places = {row["layer"] for row in left_out}
    assert all(row["bypass_effect"] < 0.9 for row in known.candidates if row["layer"] in places)


def test_controls_are_asked_prompts_from_all_over_a_list() -> None:
    rows = list(build_study_prompts(source="embedded").xstest_safe)
    assert [rows.index(row) for row in spread(rows[:10], 4)] == [0, 2, 5, 7]
    assert spread(rows[:3], 4) == rows[:3]
    assert spread([], 4) == []


def test_without_refusal_it_says_so(tmp_path: Path) -> None:
    nothing = found(Plant(strength=0.0))
    assert nothing.facts["reason"] == "no refusal"
    assert nothing.facts["carrier"] is None
    assert nothing.carrier is None
    assert nothing.remedy == REMEDIES["no refusal"]
    plain = nothing.to_json()
    assert tuple(plain) == KEYS
    assert plain["gap"] is None
    assert plain["ablation"] == {"refused": None, "removed": None, "removed_random": None}
    page = write_location(tmp_path, nothing)
    assert "No carrier: no refusal. There is nothing to locate." in page.read_text()
    assert not (tmp_path / "carrier.safetensors").exists()


def test_page_tables_and_carrier_file(known: Located, tmp_path: Path) -> None:
    page = write_location(tmp_path, known).read_text()
    assert headline(known) in page
    assert "<svg" in page
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]+"', "", page).replace("http-equiv", "")
    tables = read_tables(tmp_path)
    assert len(tables["candidates"]) == len(known.candidates)
    assert [row["best"] for row in tables["candidates"]].count(True) == 1
    assert {row["read_out"] for row in tables["effects"]} == {"refused", "utility_pass", "removed", "induced"}
    assert json.loads((tmp_path / "location.json").read_text()) == known.to_json()
    loaded = planted(Plant())
    carrier = read_carrier(tmp_path / "carrier.safetensors", loaded)
    assert known.carrier is not None
    assert carrier.layer == known.carrier.site.layer
    torch.testing.assert_close(carrier.direction(carrier.layer), known.carrier.direction)
    assert carrier.basis(2, carrier.layer).shape == (2, 64)


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = save_tiny(tmp_path / "model")
    few = [
        "--extraction",
        "8",
        "--selection",
        "4",
        "--evaluation",
        "4",
        "--controls",
        "2",
        "--max-new-tokens",
        "4",
    ]
    command = ["locate", str(model), "--source", "embedded", "--out", str(tmp_path / "out"), *few, "--json"]
    assert run(command) == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert tuple(printed) == KEYS
    assert printed["reason"] == "no refusal"  # random weights write no refusals
    assert "There is nothing to locate" in captured.err
    assert (tmp_path / "out" / "report" / "index.html").exists()
    assert run([*command, "--prompts", "harmbench"]) == 2
    assert "is not FIELD=FILE" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        locate(tiny_loaded(), SETTINGS, out=tmp_path / "other")
    assert run(["locate", "--help"]) == 0
    assert "Example: caryatid locate" in capsys.readouterr().out
