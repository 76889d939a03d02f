"""The table of attacks on step 0: what it is made from, and that the page quotes the committed file."""

import json
from pathlib import Path

import pytest

import attacks_table
from caryatid.attacks.base import ATTACKS
from caryatid.behaviour.answers import AnswerRow, Attack
from caryatid.behaviour.files import write_answers
from caryatid.behaviour.judges.base import Verdict
from caryatid.errors import InputError
from caryatid.study.series import AnchorRef

ROOT = Path(__file__).parents[2]
STEP0 = AnchorRef(0, "base", 0)


def answer(name: str, attack: Attack, text: str, verdict: Verdict, judge: str = "rules@1") -> AnswerRow:
    return AnswerRow(
        name, "set", "harmbench", attack, "harmful", None, None, "Do it", None, "Do it", text, 3, True,
        verdict, judge, None, harmful=int(verdict == "full_compliance"), harm_judge="harm@1",
    )  # fmt: skip


def written(folder: Path, names: str, text: str = "SURE, here", judge: str = "rules@1") -> None:
    """Results of an attack that is answered on every behaviour."""
    case = {
        "target": "Sure", "losses": [3.0, 2.0], "loss": 1.0, "forward_tokens": 10, "backward_tokens": 4, "steps": 1,
        "candidates": 2, "seconds": 0.5, "details": {}, "begun_text": "",
    }  # fmt: skip
    cases = {
        "cases": [case | {"behavior_id": name, "forward_tokens": 10 + i} for i, name in enumerate(names)]
    }
    (folder / "frames.json").write_text(json.dumps(cases))
    write_answers(
        folder / "frames.ev",
        [answer(name, "fixed_source", text, "full_compliance", judge) for name in names],
    )


DIRECT = [
    answer(name, "direct", "No.", "full_refusal" if name in "ab" else "full_compliance") for name in "abcde"
]


def test_rates_difference_and_budget_are_of_the_same_behaviours(tmp_path: Path) -> None:
    written(tmp_path, "abcd")
    facts, same = attacks_table.attacked("frames", tmp_path, STEP0, DIRECT)
    assert [row.prompt_id for row in same] == list("abcd")
    assert (facts["compliance"]["value"], facts["compliance"]["n"]) == (1.0, 4)
    difference = facts["minus_direct"]
    assert difference["value"] == 0.5
    assert difference["lo"] < 0.5 < difference["hi"]
    assert facts["begins_with_target"] == 4
    spent = facts["budget"]
    assert (spent["forward_tokens"], spent["loss_before"], spent["loss_after"]) == (11.5, 3.0, 1.0)
    assert spent["answered_in_search"] == 0
    shown = attacks_table.table(
        {"attacks": {"frames": facts | {"command_seconds": 7.0}}, "direct": attacks_table.rates(same)}
    )
    assert "| `frames` | 1.00 [" in shown
    assert "| 4 of 4 | 3.0000 → 1.0000 | 12 + 4 | 7 |" in shown
    assert "| asked directly | .50 [" in shown


def test_other_behaviours_or_judges_are_refused(tmp_path: Path) -> None:
    written(tmp_path, "abx")
    with pytest.raises(InputError, match="3 answers, 2 direct ones"):
        attacks_table.attacked("frames", tmp_path, STEP0, DIRECT)
    written(tmp_path, "ab", judge="rules@2")
    with pytest.raises(InputError, match="rules@2"):
        attacks_table.attacked("frames", tmp_path, STEP0, DIRECT)


def test_further_attacks_join_those_that_were_made_beside_the_same_direct_answers() -> None:
    direct = attacks_table.rates(DIRECT)
    before = {
        "behaviours": ["a"], "direct": direct, "attacks": {"one": {"n": 1}}, "unfinished": {"two": "half"}, "note": "x",
    }  # fmt: skip
    found = before | {"attacks": {"two": {"n": 2}}, "unfinished": {}, "note": "y"}
    both = attacks_table.added(before, found)
    assert both["attacks"] == {"one": {"n": 1}, "two": {"n": 2}}
    assert (both["unfinished"], both["note"]) == ({}, "x")
    with pytest.raises(InputError, match="other direct answers"):
        attacks_table.added(before, found | {"direct": attacks_table.rates(DIRECT[:3])})
    with pytest.raises(InputError, match="other behaviours"):
        attacks_table.added(before, found | {"behaviours": ["b"]})


def test_the_page_quotes_the_committed_file() -> None:
    file = ROOT / "benchmarks" / "results" / "attacks-step0-cuda.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "attacks.md").read_text(encoding="utf-8")
    assert attacks_table.table(content) in page
    assert content["unfinished"] == {}
    assert set(ATTACKS) - set(content["attacks"]) == {"gcg"}  # which studies run at step 0
    count, found = len(content["behaviours"]), content["attacks"]
    one, whole = found["random_search"], found["random_search_target"]
    assert one["minus_direct"]["lo"] > 0
    assert one["begins_with_target"] < 0.2 * count
    assert whole["budget"]["loss_after"] < one["budget"]["loss_after"]
    assert whole["compliance"]["lo"] < one["compliance"]["value"] < whole["compliance"]["hi"]
    assert max(found, key=lambda name: found[name]["budget"]["forward_tokens"]) == "random_search"
    for name, row in (("random_search", one), ("random_search_target", whole)):
        assert f"{row['budget']['steps']:.0f}" in page, name
        assert row["command_seconds"] is None, name
    assert f"falls to {one['budget']['objective_loss']:.2f} nats" in page
    assert f"{count} HarmBench behaviours" in page
    assert found["best_of_n"]["budget"]["answered_in_search"] == count
    assert found["best_of_n"]["any_refusal"]["value"] > 0.5
    assert found["best_of_n"]["minus_direct"]["hi"] < 0
    assert found["embedding"]["begins_with_target"] == count
    assert found["embedding"]["degenerate"]["value"] > 0.25
    assert found["embedding"]["minus_direct"]["lo"] < 0 < found["embedding"]["minus_direct"]["hi"]
    stopped = found["embedding_stopped"]
    assert stopped["minus_direct"]["lo"] < 0 < stopped["minus_direct"]["hi"]
    assert stopped["begins_with_target"] < count
    assert min(stopped["degenerate"]["value"], stopped["any_refusal"]["value"]) > 0.1
    assert f"after {stopped['budget']['steps']:.0f} steps in the mean" in page
    assert min(found, key=lambda name: found[name]["budget"]["loss_after"] or 9) == "embedding"
    assert found["templates"]["compliance"]["value"] == found["prefill"]["compliance"]["value"]
    assert found["templates"]["harm"]["lo"] > found["prefill"]["harm"]["hi"]
    harms = [f"{found[name]['harm']['value']:.2f}".lstrip("0") for name in ("templates", "prefill")]
    assert f"judged harmful more often ({harms[0]}, prefilling's {harms[1]})" in page
    assert found["autodan"]["compliance"]["value"] < found["templates"]["compliance"]["value"]
