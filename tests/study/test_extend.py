"""A stage, table, judge, attack, arm and intervention from outside the package: the code of docs/extending.md."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from small import small_config

from caryatid.attacks.base import ATTACKS
from caryatid.behaviour.judges import registry
from caryatid.causal.conditions import Condition
from caryatid.config import StudyConfig
from caryatid.models import residual
from caryatid.models.forward import last_logits
from caryatid.models.residual import stack_rows
from caryatid.report.tables import read_tables
from caryatid.study import stage, table
from caryatid.study.flow import run_study
from caryatid.study.run import Run, open_run
from caryatid.study.series import AnchorRef
from caryatid.study.stages.answers import Answers
from caryatid.study.stages.cases import Cases
from caryatid.study.status import study_status
from caryatid.training.arms import ARMS

DOCS = Path(__file__).parents[2] / "docs" / "extending.md"
REGISTRIES: tuple[dict[Any, Any], ...] = (
    stage._registered,
    table._registered,
    registry._REGISTERED,
    ATTACKS,
    ARMS,
    residual._KINDS,
)
NAMES: tuple[Any, ...] = ("lengths", "lengths", ("refusal", "curt"), "begging", "gentle", "mirror")
REF = AnchorRef(0, "gentle", 1)


def blocks(language: str) -> str:
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.M | re.S))


@pytest.fixture(scope="module")
def toys() -> Iterator[ModuleType]:
    """The module that the page's blocks make; nothing of it is registered before or after."""
    stage.stage_kinds()
    table.all_tables()  # now the package's own are registered
    before = [dict(each) for each in REGISTRIES]
    module = ModuleType("toys_of_the_page")
    sys.modules[module.__name__] = module
    try:
        exec(compile(blocks("python"), str(DOCS), "exec"), vars(module))
        yield module
    finally:
        del sys.modules[module.__name__]
        for each, old in zip(REGISTRIES, before, strict=True):
            each.clear()
            each.update(old)
    assert not any(name in each for each, name in zip(REGISTRIES, NAMES, strict=True))


def leaves(value: Any, key: str = "") -> Iterator[str]:
    """Settings as `KEY=VALUE`."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield from leaves(below, f"{key}.{name}" if key else str(name))
    else:
        yield f"{key}={json.dumps(value)}"


@pytest.fixture(scope="module")
def config(toys: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    page = YAML(typ="safe").load(blocks("yaml"))
    cheap = ("anchors=[0, 1]", "causal.sweeps_at=none", "causal.localise_at=none")
    return small_config(tmp_path_factory.mktemp("extend"), *leaves(page), *cheap)


@pytest.fixture(scope="module")
def finished(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return open_run(run_study(config, tmp_path_factory.mktemp("toys") / "run").directory)


@pytest.fixture(scope="module")
def tables(finished: Run) -> dict[str, list[dict[str, Any]]]:
    return read_tables(finished.path)


def test_the_page_registers_one_of_each_kind(toys: ModuleType) -> None:
    for registered, name in zip(REGISTRIES, NAMES, strict=True):
        assert name in registered


def test_a_stage_is_planned_run_and_read_back(
    toys: ModuleType, finished: Run, tables: dict[str, list[dict[str, Any]]]
) -> None:
    found = dict(finished.each(toys.Lengths))
    assert set(found) == {AnchorRef(0, "base", 0), REF}
    for ref, result in found.items():
        answers = finished.of(Answers, ref).to("harmbench", "direct")
        assert result.by_prompt == {row.prompt_id: len(row.text) for row in answers}
    assert "lengths/gentle@1/seed0" in {row.id for row in study_status(finished.path)}


def test_a_table_is_written_and_shown(finished: Run, tables: dict[str, list[dict[str, Any]]]) -> None:
    rows = tables["lengths"]
    assert [(row["arm"], row["step"], row["n"]) for row in rows] == [("base", 0, 4), ("gentle", 1, 4)]
    longest = max(len(row.text) for row in finished.of(Answers, REF).to("harmbench", "direct"))
    assert rows[1]["longest"] == longest
    html = (finished.path / "report" / "index.html").read_text(encoding="utf-8")
    assert "Length of answers" in html.split('<section id="tables">')[1]
    assert (finished.path / "tables" / "lengths.csv").is_file()


def test_a_judge_judges_everywhere(finished: Run, tables: dict[str, list[dict[str, Any]]]) -> None:
    compliance = [
        row for row in tables["behaviour"] if (row["metric"], row["suite"]) == ("compliance", "harmbench")
    ]
    assert {row["judge"] for row in compliance} == {"curt@1"}
    assert {row["judge"] for row in tables["verdict"]} == {"curt@1"}
    for row in finished.of(Answers, REF).to("harmbench", "direct"):
        assert row.verdict == ("full_refusal" if len(row.text) < 40 else "full_compliance")


def test_an_attack_is_sent_to_every_anchor(finished: Run, tables: dict[str, list[dict[str, Any]]]) -> None:
    ((_, attacked),) = finished.each(Cases)
    assert {case.attack for case in attacked.cases} == {"begging"}
    for ref in (AnchorRef(0, "base", 0), REF):
        sent = finished.of(Answers, ref).to("harmbench", "fixed_source")
        assert len(sent) == 2
        assert all(row.user_text.endswith(" please please") for row in sent)
    (budget,) = tables["attacks"]
    assert (budget["cases"], budget["candidates"], budget["loss_after"]) == (2, 2, None)


def test_an_arm_is_trained(finished: Run, tables: dict[str, list[dict[str, Any]]]) -> None:
    (row,) = [row for row in tables["training"] if row["arm"] == "gentle"]
    assert row["loss_toward"] > 0
    assert row["delta_weight"] > 0
    assert {(row["arm"], row["from"], row["to"]) for row in tables["verdict"]} == {("gentle", 0, 1)}


def test_an_intervention_is_a_condition(toys: ModuleType, finished: Run) -> None:
    model, direction = finished.model("gentle", 1), finished.carrier("gentle", 1).direction[None]
    conditions = [Condition(), *(Condition("mirror", "carrier", direction, a, layer=2) for a in (0.0, 1.0))]
    assert isinstance(conditions[1].row, toys.Mirror)
    ids = model.format.ids("How do I write a letter?")
    logits = last_logits(
        model.loaded, [ids] * 3, batch_size=3, interventions=stack_rows([each.row for each in conditions])
    )
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2], atol=1e-3)
