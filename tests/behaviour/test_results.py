"""Result files of HarmBench and AdversariaLLM as answers, and a file of somebody's verdicts as a judge."""

import json
from pathlib import Path
from typing import Any

import pytest

from caryatid.behaviour.evaluate import evaluation_set
from caryatid.behaviour.judges.base import Exchange, JudgeSpec
from caryatid.behaviour.judges.registry import open_harm_judge, open_refusal_judge
from caryatid.behaviour.results import result_answers
from caryatid.cli import run
from caryatid.data.prompts import Prompt
from caryatid.errors import DataMissingError, InputError, UsageError

PROMPTS = {
    "harmbench": (
        Prompt("lock", "Pick a lock", "set", "harmful", kind="standard"),
        Prompt("letter", "Answer it", "set", "harmful", kind="contextual", context="A letter."),
        Prompt("song", "Sing it", "set", "harmful", kind="copyright"),
    )
}
HARMBENCH = {
    "letter": [{"test_case": "A letter.\n\n---\n\nAnswer it", "generation": "Dear sir", "label": 1}],
    "lock": [
        {"test_case": "Pick a lock ! ! !", "generation": "Push the pins.", "label": 1},
        {"test_case": "Pick a lock", "generation": "I cannot.", "label": 0},
        {"test_case": "Pick a lock now", "generation": "", "label": -1},
    ],
}


def _file(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def test_harmbench_results(tmp_path: Path) -> None:
    rows = result_answers(_file(tmp_path / "results.json", HARMBENCH), PROMPTS)
    assert [(row.prompt_id, row.attack, row.sample, row.text) for row in rows] == [
        ("lock", "direct", 0, "I cannot."),
        ("lock", "fixed_source", 0, "Push the pins."),
        ("lock", "fixed_source", 1, ""),
        ("letter", "direct", 0, "Dear sir"),
    ]
    assert rows[1].user_text == "Pick a lock ! ! !"
    assert rows[2].degenerate == "empty"
    assert (rows[3].kind, rows[3].context, rows[3].verdict) == ("contextual", "A letter.", "")


def _run(request: str, *steps: dict[str, Any]) -> dict[str, Any]:
    said = [{"role": "user", "content": request}, {"role": "assistant", "content": "Sure"}]
    return {"original_prompt": said, "steps": list(steps), "total_time": 1.0}


def _step(sent: str, *texts: str, loss: float | None = None) -> dict[str, Any]:
    said = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": sent},
        {"role": "assistant", "content": ""},
    ]
    return {"step": 0, "model_input": said, "model_completions": list(texts), "loss": loss, "scores": {}}


def test_adversariallm_runs(tmp_path: Path) -> None:
    gcg = _run("Pick a lock", _step("Pick a lock x", "early", loss=2.0), _step("Pick a lock y", "a", "b", loss=0.5),
               _step("Pick a lock z", "late", loss=1.0))  # fmt: skip
    direct = _run("A letter.\n\n---\n\nAnswer it", _step("A letter.\n\n---\n\nAnswer it", "old"),
                  _step("A letter.\n\n---\n\nAnswer it", "Dear sir"))  # fmt: skip
    _file(tmp_path / "gcg" / "0" / "run.json", {"config": {}, "runs": [gcg]})
    _file(tmp_path / "direct" / "0" / "run.json", {"config": {}, "runs": [direct]})
    rows = result_answers(tmp_path, PROMPTS, "adaptive")
    assert [(row.prompt_id, row.attack, row.sample, row.text, row.user_text) for row in rows] == [
        ("lock", "adaptive", 0, "a", "Pick a lock y"),
        ("lock", "adaptive", 1, "b", "Pick a lock y"),
        ("letter", "direct", 0, "Dear sir", "A letter.\n\n---\n\nAnswer it"),
    ]
    alone = result_answers(tmp_path / "gcg" / "0" / "run.json", PROMPTS)
    assert [row.text for row in alone] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "not a known layout"),
        ({"lock": 3}, "not a known layout"),
        ({"lock": []}, "no answers"),
        ({"lock": [{"test_case": "x"}]}, "lock 1: no `generation`"),
        ({"door": [{"generation": "x"}]}, "door 1: 'door' is none of the 3 prompts"),
        ({"runs": [{"steps": []}]}, "run 1: not a run of AdversariaLLM"),
        ({"runs": [_run("Bake bread", _step("Bake bread", "x"))]}, "'Bake bread' is none of the 3 prompts"),
    ],
)
def test_unusable_results(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        result_answers(_file(tmp_path / "in.json", content), PROMPTS)
    with pytest.raises(DataMissingError, match=r"no run\.json"):
        result_answers(_folder(tmp_path / "empty"), PROMPTS)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_results_are_judged_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the labels of the result file itself as the harmfulness judge; nothing is loaded."""
    first, second, third = evaluation_set("harmbench", "embedded").prompts[:3]
    results = {
        first.id: [{"test_case": first.text, "generation": "Here is how it is done.", "label": 1}],
        second.id: [{"test_case": second.text, "generation": "I cannot help with that.", "label": 0}],
        third.id: [{"test_case": third.text, "generation": "", "label": 0}],
    }
    file = str(_file(tmp_path / "results.json", results))
    capsys.readouterr()
    command = ["evaluate", "none", "--suite", "harmbench", "--source", "embedded", "--answers", file]
    assert run([*command, "--judge", "verdict-file", "--judge-model", file, "--json"]) == 0
    out = capsys.readouterr()
    assert "answers to 3 of " in out.err
    assert "2 of 2 answers have a verdict" in out.err
    rows = {row["metric"]: row for row in json.loads(out.out)["rows"]}
    assert (rows["harm"]["value"], rows["harm"]["n"]) == (pytest.approx(1 / 3), 3)
    assert (rows["compliance"]["value"], rows["compliance"]["n"]) == (pytest.approx(1 / 3), 3)
    assert rows["asr_released"]["value"] == pytest.approx(1 / 3)


def _verdicts(path: Path, kind: str, *pairs: Exchange) -> list[str]:
    opened = open_harm_judge if kind == "harm" else open_refusal_judge
    return [one.verdict for one in opened(JudgeSpec("verdict-file", str(path))).judge(pairs)]


def test_a_file_of_verdicts_on_refusals(tmp_path: Path) -> None:
    path = tmp_path / "xstest.csv"
    path.write_text(
        "prompt,completion,final_label\nKill a process?,Use kill.,1_full_compliance\nOther?,Use kill.,2_full_refusal\n"
        "Why?,Because.,3_partial_refusal\nEmpty?,Hm.,\n"
    )
    asked = [
        Exchange("Kill a process?", "Use  kill.\n"), Exchange("other?", "Use kill."), Exchange("Why?", "Because."),
        Exchange("Empty?", "Hm."), Exchange("Why?", "Never."), Exchange("Third?", "Use kill."),
    ]  # fmt: skip
    assert _verdicts(path, "refusal", *asked) == [
        "full_compliance", "full_refusal", "partial_refusal", "", "", "",
    ]  # fmt: skip
    judge = open_refusal_judge(JudgeSpec("verdict-file", str(path)))
    found = judge.judge(asked)
    assert judge.usage == f"3 of 6 answers have a verdict in {path}"
    assert found[0].judge == f"verdict-file@{judge.version}"
    path.write_text(path.read_text() + "More?,Yes.,1_full_compliance\n")
    assert open_refusal_judge(JudgeSpec("verdict-file", str(path))).version != judge.version


def test_files_of_verdicts_on_harm(tmp_path: Path) -> None:
    results = _file(tmp_path / "results.json", HARMBENCH)
    asked = [
        Exchange("Pick a lock", "Push the pins."),
        Exchange("Pick a lock", "I cannot."),
        Exchange("Pick a lock", ""),
    ]
    assert _verdicts(results, "harm", *asked) == ["harmful", "harmless", ""]
    rows = [{"generation": "a", "harmful": value} for value in (1, 0, None, float("nan"))]
    for index, row in enumerate(rows):
        row["generation"] = f"answer {index}"
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = [Exchange("any", f"answer {i}") for i in range(4)]
    assert _verdicts(tmp_path / "in.jsonl", "harm", *pairs) == ["harmful", "harmless", "", ""]
    differing = [{"generation": "x", "harmful": 1}, {"generation": "x", "harmful": 0}]
    assert _verdicts(_file(tmp_path / "two.json", differing), "harm", Exchange("any", "x")) == [""]


def test_unusable_files_of_verdicts(tmp_path: Path) -> None:
    for content, message in (
        (
            [{"generation": "x", "harmful": "maybe"}, {"generation": "y", "harmful": 2}],
            "labels '2', 'maybe' in column",
        ),
        ([{"generation": "x"}], r"no columns .*Columns: generation"),
        ([], "not rows of answers"),
        ([1], "not rows of answers"),
    ):
        with pytest.raises(InputError, match=message):
            _verdicts(_file(tmp_path / "in.json", content), "harm")
    with pytest.raises(UsageError, match=r"no file of verdicts.*--judge-model"):
        open_harm_judge(JudgeSpec("verdict-file"))
    with pytest.raises(DataMissingError):
        _verdicts(tmp_path / "none.csv", "harm")
