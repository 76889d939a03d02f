"""Evaluating one model: which prompts, which rows, and what is said about them."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from gold import needs_labels

from caryatid.artifacts import Chunks
from caryatid.behaviour.answers import AnswerRow
from caryatid.behaviour.evaluate import (
    Evaluation,
    Judges,
    Wanted,
    evaluate,
    evaluated,
    evaluation_set,
    expand_suites,
)
from caryatid.behaviour.files import export_prompts, import_answers, read_answers, write_answers
from caryatid.behaviour.judges.harm import HarmFeatures
from caryatid.behaviour.judges.rules import RefusalRules
from caryatid.behaviour.perplexity import heldout_perplexity
from caryatid.behaviour.suites import Asking, rejudge
from caryatid.cli import run
from caryatid.data.chat import ChatExample
from caryatid.data.sources import Lookup
from caryatid.errors import DataMissingError, InputError, UsageError
from caryatid.models.generate import Sampling
from caryatid.models.load import load_model
from caryatid.models.template import ChatFormat
from tiny import save_tiny, tiny_loaded

ASKING = Asking(max_new_tokens=4, batch_size=8)
JUDGES = Judges(RefusalRules())
CHAT = [ChatExample("1", "Hi", "Hello there."), ChatExample("2", "What is the sea?", "Water.")]


def wanted(*suites: str, **how: Any) -> Wanted:
    return Wanted(suites, **{"source": "embedded", "limit": 6, **how})


def asked(*suites: str, **how: Any) -> Evaluation:
    return evaluate(tiny_loaded(), wanted(*suites, **how), ASKING, JUDGES)


def test_suites_by_name() -> None:
    assert expand_suites(["xstest", "utility", "xstest_safe"]) == ("xstest_safe", "xstest_unsafe", "utility")
    assert expand_suites(["all"]) == ("harmbench", "strongreject", "xstest_safe", "xstest_unsafe", "utility")
    with pytest.raises(UsageError, match=r"no suite named 'mmlu'.*harmbench"):
        expand_suites(["mmlu"])
    with pytest.raises(UsageError, match="no suite named"):
        expand_suites([])


def test_all_suites_of_a_tiny_model(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    found = evaluate(
        loaded,
        wanted("all", "perplexity", chat_examples=tuple(CHAT), by="kind"),
        ASKING,
        Judges(RefusalRules(), HarmFeatures()),
        chunks=lambda suite: Chunks(tmp_path / suite),
    )
    whole = [row for row in found.rows if row["group"] == ""]
    assert {(row["suite"], row["attack"]) for row in whole} == {
        ("harmbench", "direct"),
        ("strongreject", "direct"),
        ("xstest_safe", "none"),
        ("xstest_unsafe", "none"),
        ("utility", "none"),
        ("perplexity", "none"),
    }
    counts = {(row["suite"], row["metric"]): row["n"] for row in whole if row["judge"] != "harm-features@2"}
    assert all(counts[suite, "degenerate"] == 6 for suite in found.sets)
    assert counts["utility", "pass"] == 6
    assert {row["suite"] for row in whole if row["metric"] == "harm"} == {"harmbench", "strongreject"}
    (perplexity,) = [row for row in whole if row["metric"] == "perplexity"]
    assert perplexity["n"] == 2
    assert len(found.answers) == 30
    assert any("stand in" in note for note in found.notes)
    assert any("proxies" in note and "refusal-rules@5" in note for note in found.notes)
    assert any(str(row["group"]).startswith("kind=") for row in found.rows)
    again = evaluate(loaded, wanted("all"), ASKING, JUDGES, chunks=lambda suite: Chunks(tmp_path / suite))
    assert [row.text for row in again.answers] == [row.text for row in found.answers]


def test_json_has_no_nan_and_no_answers_unless_asked() -> None:
    found = asked("utility")
    shown = found.to_json()
    values = [value for row in shown["rows"] for value in row.values()]
    assert not any(isinstance(value, float) and math.isnan(value) for value in values)
    assert "answers" not in shown
    assert len(found.to_json(answers=True)["answers"]) == 6
    assert shown["prompts"]["utility"]["n"] == 6


def test_cases_choose_the_behaviours_and_name_the_attack() -> None:
    names = [prompt.id for prompt in evaluation_set("harmbench", "embedded")][:3]
    cases = {name: f"{name}: tell me ! ! !" for name in names}
    found = asked("harmbench", cases=cases)
    assert [row.prompt_id for row in found.answers] == names
    assert all(
        row.attack == "fixed_source" and row.user_text == cases[row.prompt_id] for row in found.answers
    )
    with pytest.raises(InputError, match="no prompt to ask"):
        asked("harmbench", cases={"nobody": "!"})


def test_perplexity_needs_chat_before_anything_is_generated() -> None:
    with pytest.raises(UsageError, match="held-out chat"):
        asked("utility", "perplexity")


def test_the_packages_own_prompts_stand_in_only_where_nothing_can_be_had(tmp_path: Path) -> None:
    nowhere = Lookup(data=None, cache=tmp_path, offline=True)
    assert evaluation_set("strongreject", "auto", nowhere).source.startswith("embedded")
    with pytest.raises(DataMissingError):
        evaluation_set("strongreject", "benchmarks", nowhere)
    (tmp_path / "data").mkdir()
    with pytest.raises(
        DataMissingError
    ):  # a data folder that lacks the file is a mistake, not a reason to use others
        evaluation_set("strongreject", "auto", Lookup(data=tmp_path / "data", cache=tmp_path, offline=True))


@needs_labels
def test_published_suites_have_their_published_sizes() -> None:
    sizes = {name: len(evaluation_set(name)) for name in expand_suites(["all"])}
    assert sizes == {
        "harmbench": 400, "strongreject": 313, "xstest_safe": 250, "xstest_unsafe": 200, "utility": 60,
    }  # fmt: skip
    kinds = [prompt.kind for prompt in evaluation_set("harmbench")]
    assert [kinds.count(kind) for kind in ("standard", "contextual", "copyright")] == [200, 100, 100]
    assert {prompt.set_name for prompt in evaluation_set("harmbench")} == {"harmbench"}


def test_drawn_answers_repeat_with_the_seed_and_widen_the_interval(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    drawn = replace(ASKING, sampling=Sampling(1.0, 0.9, seed=3), samples=4)
    utility = wanted("utility")
    found = evaluate(loaded, utility, drawn, JUDGES, chunks=lambda suite: Chunks(tmp_path / suite))
    assert [row.sample for row in found.answers[:5]] == [0, 1, 2, 3, 0]
    assert len({row.text for row in found.answers[:4]}) > 1
    again = evaluate(loaded, utility, drawn, JUDGES)
    assert [row.text for row in again.answers] == [row.text for row in found.answers]
    (tmp_path / "utility" / "000002.json").unlink()  # stopped there: the rest is drawn as before
    resumed = evaluate(loaded, utility, drawn, JUDGES, chunks=lambda suite: Chunks(tmp_path / suite))
    assert [row.text for row in resumed.answers] == [row.text for row in found.answers]
    other = evaluate(loaded, utility, replace(drawn, sampling=Sampling(seed=4)), JUDGES)
    assert [row.text for row in other.answers] != [row.text for row in found.answers]
    rows = {row["metric"]: row for row in found.rows}
    assert rows["any_refusal"]["n"] == 24
    with pytest.raises(UsageError, match="several greedy answers"):
        replace(ASKING, samples=2)


def test_answers_survive_their_files(tmp_path: Path) -> None:
    found = asked("xstest")
    rows = [
        *found.answers,
        replace(found.answers[0], text="one\u2028two\u2029three\x85four\x0bfive\x1csix\rseven"),
        replace(found.answers[0], text='\x00<b>\ud800 \u202e \n"', harmful=1, harm_score=0.5),
    ]
    where = [{"arm": "sft", "step": i, "seed": 0} for i in range(len(rows))]
    write_answers(tmp_path, rows, where)
    assert read_answers(tmp_path / "answers.jsonl")[:-1] == rows[:-1]
    table = pq.read_table(tmp_path / "answers.parquet")
    assert table.schema.metadata[b"caryatid.answers"] == b"2"
    assert table.column("step").to_pylist() == list(range(len(rows)))
    assert table.column("text").to_pylist()[:-1] == [row.text for row in rows[:-1]]
    assert table.column("harm_score").to_pylist()[-1] == 0.5
    assert set(table.column_names) == {"arm", "step", "seed", "schema", *AnswerRow.__dataclass_fields__}


def test_another_engines_answers_are_judged_as_ours(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    xstest = wanted("xstest", limit=4)
    prompts = {name: one.prompts for name, one in xstest.prompts().items()}
    chat = ChatFormat(loaded.tokenizer)
    assert export_prompts(tmp_path / "prompts.jsonl", prompts, chat) == 8
    sent = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert sent[0]["prompt"] == chat.text(sent[0]["user_text"])
    ours = evaluate(loaded, xstest, ASKING, JUDGES)
    given = [{"id": row["id"], "text": one.text} for row, one in zip(sent, ours.answers, strict=True)]
    (tmp_path / "answers.jsonl").write_text("\n".join(json.dumps(row) for row in reversed(given)))
    attacks = {name: xstest.attack_of(name) for name in prompts}
    back = import_answers(tmp_path / "answers.jsonl", prompts, attacks)
    judged = evaluated(rejudge(back, RefusalRules()), ours.sets, JUDGES)
    assert [row for row in judged.rows if row["metric"] != "degenerate"] == [
        row for row in ours.rows if row["metric"] != "degenerate"
    ]
    (tmp_path / "answers.jsonl").write_text(json.dumps(given[0]))
    with pytest.raises(InputError, match="no answer to 7 of 8 prompts"):
        import_answers(tmp_path / "answers.jsonl", prompts, attacks)
    for key, value in (("n_tokens", "12"), ("n_tokens", -1), ("n_tokens", 1.5), ("ended", "false")):
        (tmp_path / "answers.jsonl").write_text(json.dumps({**given[0], key: value}))
        with pytest.raises(InputError, match=rf"row 1.*'{key}' is {value!r}"):
            import_answers(tmp_path / "answers.jsonl", prompts, attacks)
    full = [{**row, "text": "a\u2028b", "n_tokens": 3, "ended": i > 0} for i, row in enumerate(given)]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in full)
    (tmp_path / "answers.jsonl").write_bytes(lines.encode())
    back = import_answers(tmp_path / "answers.jsonl", prompts, attacks)
    assert {(row.text, row.n_tokens) for row in back} == {("a\u2028b", 3)}
    assert [row.ended for row in back] == [False, *[True] * 7]
    (tmp_path / "answers.jsonl").write_text('{"id": 3}')
    with pytest.raises(InputError, match=r"row 1.*no `id` and `text`"):
        import_answers(tmp_path / "answers.jsonl", prompts, attacks)


def test_another_engine_is_asked_what_cases_send(tmp_path: Path) -> None:
    chosen = evaluation_set("harmbench", "embedded").prompts[:2]
    cases = {prompt.id: f"Pretend. {prompt.id}" for prompt in chosen}
    attacked, chat = wanted("harmbench", cases=cases), ChatFormat(tiny_loaded().tokenizer)
    prompts = {name: one.prompts for name, one in attacked.prompts().items()}
    export_prompts(tmp_path / "prompts.jsonl", prompts, chat, cases=cases)
    sent = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert [row["user_text"] for row in sent] == list(cases.values())
    given = [json.dumps({"id": row["id"], "text": "Sure."}) for row in sent]
    (tmp_path / "answers.jsonl").write_text("\n".join(given))
    attacks = {"harmbench": attacked.attack_of("harmbench")}
    back = import_answers(tmp_path / "answers.jsonl", prompts, attacks, cases=cases)
    assert [(row.user_text, row.attack) for row in back] == [(t, "fixed_source") for t in cases.values()]


def test_perplexity_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(save_tiny(tmp_path / "model"))
    lines = [json.dumps({"user": one.user, "answer": one.answer}) for one in CHAT]
    (tmp_path / "chat.jsonl").write_text("\n".join(lines))
    asked = ["evaluate", model, "--suite", "perplexity", "--json"]
    assert run([*asked, "--chat", str(tmp_path / "chat.jsonl")]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    loaded = load_model(model)
    expected = heldout_perplexity(loaded, ChatFormat(loaded.tokenizer), CHAT, batch_size=1)
    assert (row["metric"], row["n"]) == ("perplexity", 2)
    assert row["value"] == pytest.approx(expected.value, rel=1e-5)
    assert run(asked) == 2
    assert run([*asked, "--chat", str(tmp_path / "chat.jsonl"), "--answers", str(tmp_path / "a.jsonl")]) == 2
    assert "perplexity needs held-out chat and the model itself" in capsys.readouterr().err
