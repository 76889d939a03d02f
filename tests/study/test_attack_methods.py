"""A study under attacks other than GCG: what is sent, what is no text, and what a configuration refuses."""

from pathlib import Path

import pytest
from small import small_config

from caryatid.config import load_config
from caryatid.errors import ConfigError
from caryatid.progress import NO_PROGRESS
from caryatid.study.run import Run
from caryatid.study.runner import execute, opened
from caryatid.study.series import AnchorRef, SeedRef
from caryatid.study.stages.adaptive import Adaptive
from caryatid.study.stages.answers import Answers
from caryatid.study.stages.cases import Cases
from caryatid.study.tables.attacks import TABLE


def test_a_study_sends_begun_answers_and_embeddings(tmp_path: Path) -> None:
    config = small_config(
        tmp_path,
        "warmup.enabled=false",
        "arms=[sft]",
        "anchors=[0, 1]",
        "attacks.fixed_source={method: prefill, behaviours: 2, options: {tokens: 3}}",
        "attacks.adaptive={enabled: true, method: embedding, behaviours: 2, options: {steps: 2, suffix_length: 3}}",
    )
    with opened(config, tmp_path / "run", NO_PROGRESS, lambda _line: None) as session:
        execute(session, session.plan.upto(Cases, Adaptive, Answers))
        run = Run(session.plan, session.run)
        sizes = {entry.stage.kind: entry.stage.size() for entry in session.plan}
    assert sizes["cases"] == "2 behaviours × prefill"
    assert sizes["adaptive"] == "2 behaviours × 2 embedding steps"
    anchor = AnchorRef(0, "sft", 1)
    fixed, adaptive = run.of(Cases, SeedRef(0)), run.of(Adaptive, anchor)
    assert all(case.begun_text for case in fixed.cases)
    assert all(case.soft is not None and case.soft.count == 3 for case in adaptive.cases)
    answers = run.of(Answers, anchor)
    for attack, found in (("fixed_source", fixed), ("adaptive", adaptive)):
        rows = {row.prompt_id: row for row in answers.to("harmbench", attack)}
        assert {case.behavior_id: case.sent_text for case in found.cases} == {
            name: row.user_text for name, row in rows.items()
        }
    columns = {column.name for column in TABLE.columns}
    by_attack = {(row["attack"], row["step"]): row for row in TABLE.rows(run)}
    assert all(set(row) == columns for row in by_attack.values())
    assert by_attack["fixed_source", 0]["loss_after"] is None
    probe = by_attack["adaptive", 1]
    assert probe["loss_after"] <= probe["loss_before"]
    assert probe["forward_tokens"] > 0


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        ("{method: roar}", "no attack is named 'roar'"),
        ("{method: prefill, options: {steps: 3}}", "options.steps"),
        ("{method: embedding, options: {steps: many}}", "options.steps"),
        ("{method: autodan, options: {elites: 2}}", "elites"),
        ("{method: gcg, options: {steps: 3}}", "stand beside `method`"),
    ],
)
def test_settings_of_attacks_are_checked_with_the_configuration(attack: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(preset="quick", overrides=[f"attacks.fixed_source={attack}"])
    assert words in "\n".join(caught.value.problems or (str(caught.value),))


@pytest.mark.parametrize("method", ["templates", "gcg"])
@pytest.mark.parametrize("own", [False, True])
def test_suffixes_of_another_backbone_are_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, own: bool
) -> None:
    attack = {
        "templates": "{method: templates, options: {file: embedded-refusing}, behaviours: 2}",
        "gcg": "{method: gcg, steps: 1, behaviours: 2}",
    }
    said: list[str] = []
    config = small_config(tmp_path, f"attacks.fixed_source={attack[method]}")
    if own:  # as if the tiny model were the one that they were found on
        monkeypatch.setattr("caryatid.study.runner.REFUSING", config.model.spec)
        config.attacks.fixed_source.options.update(
            {"file": config.model.spec} if method == "templates" else {}
        )
    with opened(config, tmp_path / "run", NO_PROGRESS, said.append):
        pass
    told = any("suffixes found on" in line for line in said)
    assert told == (method == "templates" and not own)
