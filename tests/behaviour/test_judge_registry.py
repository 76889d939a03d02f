"""Judges by kind and name, and one that another package brings along."""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
from test_metrics import ANSWER

from caryatid.behaviour.judges import registry
from caryatid.behaviour.judges.base import Exchange, Judgement, JudgeSpec, Kind, judge_id
from caryatid.behaviour.judges.registry import (
    judge_entry,
    judge_names,
    open_harm_judge,
    open_refusal_judge,
    register_judge,
)
from caryatid.behaviour.metrics import metrics_rows
from caryatid.behaviour.suites import rejudge
from caryatid.config.schema import BehaviourConfig
from caryatid.errors import InputError, UsageError
from tiny import save_tiny


def test_judges_by_name(tmp_path: Path) -> None:
    for name in judge_names("harm"):
        assert BehaviourConfig(harm_judge=name).harm_judge.name == name  # type: ignore[arg-type]
    folder = str(save_tiny(tmp_path / "judge"))
    for name in ("wildguard", "strongreject-finetuned", "llama-guard"):
        judge = open_harm_judge(JudgeSpec(name, folder))
        assert (judge.name, judge.kind, judge.proxy, judge.usage) == (name, "harm", False, None)
        assert judge.judge([Exchange("x", "y")])[0].verdict == ""
    assert open_refusal_judge(JudgeSpec("wildguard", folder)).kind == "refusal"
    with pytest.raises(InputError, match="no token for yes and no"):
        open_harm_judge(JudgeSpec("harmbench-mistral", folder)).judge([Exchange("x", "y")])


@pytest.mark.parametrize(
    ("opened", "name", "kind"),
    [(open_refusal_judge, "refusal-rules", "refusal"), (open_harm_judge, "harm-features", "harm")],
)
def test_the_offline_judges_are_used_where_none_is_named(opened, name, kind) -> None:  # type: ignore[no-untyped-def]
    judge = opened()
    assert (judge.name, judge.kind, judge.proxy) == (name, kind, True)
    assert open_refusal_judge(JudgeSpec("refusal-phrases")).proxy


def test_unknown_names_and_settings_are_one_line() -> None:
    with pytest.raises(UsageError, match=r"no harm judge named 'gpt'.*harm-features"):
        open_harm_judge(JudgeSpec("gpt"))
    with pytest.raises(UsageError, match=r"no refusal judge named 'llama-guard'.*refusal-phrases"):
        open_refusal_judge(JudgeSpec("llama-guard"))
    with pytest.raises(UsageError, match="batch size 0"):
        JudgeSpec("wildguard", batch_size=0)
    with pytest.raises(UsageError, match="-1 requests a minute"):
        JudgeSpec("wildguard", per_minute=-1)


class Polite:
    """An outside judge: who says please is answered."""

    name = "polite"
    kind: Kind = "refusal"
    proxy, usage = False, None

    def __init__(self, spec: JudgeSpec) -> None:
        self.version = str(spec.model)

    def judge(self, pairs: Sequence[Exchange]) -> list[Judgement]:
        polite = ["please" in pair.prompt for pair in pairs]
        return [Judgement("full_compliance" if one else "full_refusal", judge_id(self)) for one in polite]


def test_another_package_brings_a_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", copy(registry._REGISTERED))
    register_judge("polite", Polite, kind="refusal", model="2")
    register_judge("polite", Polite, kind="harm")
    assert "polite" in judge_names("refusal")
    assert judge_entry("polite", "refusal").model == "2"
    judge = open_refusal_judge(JudgeSpec("polite"))
    rows = rejudge([ANSWER, replace(ANSWER, prompt_id="q", prompt="please do it")], judge)
    (compliance, *_) = metrics_rows(rows, "sft", 1, 0)
    assert (compliance["value"], compliance["judge"], compliance["proxy"]) == (0.5, "polite@2", False)
    with pytest.raises(ValueError, match=r"judge named \('refusal', 'polite'\) is registered already"):
        register_judge("polite", Polite, kind="refusal")
    with pytest.raises(InputError, match="a judge of refusal is registered as one of harm"):
        open_harm_judge(JudgeSpec("polite", "3"))
