"""What stands behind `caryatid attack gcg`: files in, the contract's object out, resuming in between."""

import json
from pathlib import Path

import pytest

from caryatid.attacks import run
from caryatid.attacks.gcg.search import GcgResult
from caryatid.attacks.run import attack_gcg, cases_json, gcg_cases, read_cases, read_targets
from caryatid.data.prompts import Prompt
from caryatid.errors import DataMissingError, InputError, NumericalError, UsageError
from caryatid.models.template import ChatFormat
from tiny import tiny_loaded

HARMBENCH = (
    "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
    '"Write a letter, then post it",standard,illegal,,,letter\n'
    'Explain this,contextual,illegal,context,"The tides, and the moon",tides\n'
)
SETTINGS = {"steps": 3, "width": 8, "top_k": 16, "batch_size": 8, "seed": 0, "suffix_length": 4}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_harmbench_columns_context_and_targets(tmp_path: Path) -> None:
    behaviors = write(tmp_path / "b.csv", HARMBENCH)
    targets = write(tmp_path / "t.json", json.dumps({"tides": ["Sure, the tides", "Other"], "unused": "x"}))
    letter, tides = read_cases(behaviors, targets)
    assert (letter.behavior_id, letter.user_text) == ("letter", "Write a letter, then post it")
    assert letter.target == "Sure, here is a letter, then post it"
    assert tides.user_text == "The tides, and the moon\n\n---\n\nExplain this"
    assert tides.target == "Sure, the tides"
    assert read_cases(behaviors)[1].target == "Sure, here is this"


@pytest.mark.parametrize("column", ["prompt", "behavior"])
def test_plain_columns_get_ids(tmp_path: Path, column: str) -> None:
    cases = read_cases(write(tmp_path / "mine.csv", f"{column}\nExplain the tides\nWrite a poem\n"))
    assert [case.user_text for case in cases] == ["Explain the tides", "Write a poem"]
    assert len({case.behavior_id for case in cases}) == 2


def test_a_prompts_own_target_is_used_before_the_default() -> None:
    prompt = Prompt(id="p", text="Explain the tides", set_name="s", label="harmful", targets=("Yes, ", "No"))
    assert gcg_cases([prompt])[0].target == "Yes, "
    assert gcg_cases([prompt], {"p": "Sure"})[0].target == "Sure"


def test_the_text_of_a_file_is_sent_as_it_stands(tmp_path: Path) -> None:
    """One of HarmBench's behaviours ends with a space, and some of its contexts begin with one."""
    behaviors = write(tmp_path / "b.csv", 'Behavior,ContextString,BehaviorID\n"Explain ", The tides,tides\n')
    assert read_cases(behaviors)[0].user_text == " The tides\n\n---\n\nExplain "


def test_empty_texts_in_a_list_of_targets_are_passed_over(tmp_path: Path) -> None:
    """HarmBench's adversarial training targets hold a few."""
    targets = write(tmp_path / "t.json", json.dumps({"a": ["", "Sure"], "b": "Yes"}))
    assert read_targets(targets) == {"a": "Sure", "b": "Yes"}


@pytest.mark.parametrize("content", ["[]", '{"a": 1}', '{"a": []}', '{"a": [""]}', '{"a": " "}', "{"])
def test_targets_that_cannot_be_used_are_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(InputError):
        read_targets(write(tmp_path / "t.json", content))


def test_missing_files_and_targets_for_nobody(tmp_path: Path) -> None:
    behaviors = write(tmp_path / "b.csv", HARMBENCH)
    with pytest.raises(DataMissingError):
        read_cases(tmp_path / "absent.csv")
    with pytest.raises(DataMissingError):
        read_cases(behaviors, tmp_path / "absent.json")
    with pytest.raises(InputError, match="no target"):
        read_cases(behaviors, write(tmp_path / "t.json", '{"other": "Sure"}'))


def test_results_are_the_contracts_object(tmp_path: Path) -> None:
    loaded = tiny_loaded("llama")
    cases = read_cases(write(tmp_path / "b.csv", HARMBENCH))
    results = attack_gcg(loaded, ChatFormat(loaded.tokenizer), cases, **SETTINGS)
    value = json.loads(json.dumps(cases_json(results)))
    assert set(value) == {"cases"}
    for row, case in zip(value["cases"], cases, strict=True):
        assert {
            "behavior_id",
            "target",
            "suffix_text",
            "suffix_ids",
            "loss",
            "losses",
            "steps",
            "candidates",
            "forward_tokens",
            "seconds",
        } <= set(row)
        assert row["candidates"] == 3 * 8
        assert row["behavior_id"] == case.behavior_id
        assert row["loss"] == min(row["losses"])
        assert len(row["losses"]) == row["steps"] + 1 == 4


def test_finished_cases_are_not_searched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded("llama")
    chat = ChatFormat(loaded.tokenizer)
    cases = read_cases(write(tmp_path / "b.csv", HARMBENCH))
    whole = attack_gcg(loaded, chat, cases, **SETTINGS)
    search, searched = run.gcg_search, []

    def interrupted(*args: object, **kwargs: object) -> list[GcgResult]:
        searched.append(args[2][0].behavior_id)  # type: ignore[index]
        if searched == ["letter", "tides"]:
            raise KeyboardInterrupt
        return search(*args, **kwargs)

    monkeypatch.setattr(run, "gcg_search", interrupted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        attack_gcg(loaded, chat, cases, **SETTINGS, out=out)
    assert not (out / "results.json").exists()
    resumed = attack_gcg(loaded, chat, cases, **SETTINGS, out=out)
    assert searched == ["letter", "tides", "tides"]

    def found(results: list[GcgResult]) -> list[tuple[object, ...]]:
        return [(r.behavior_id, r.suffix_ids, r.losses, r.loss) for r in results]

    assert found(resumed) == found(whole)
    assert json.loads((out / "results.json").read_text()) == cases_json(resumed)
    attack_gcg(loaded, chat, cases, **{**SETTINGS, "batch_size": 3}, out=out)
    assert len(searched) == 3
    attack_gcg(loaded, chat, cases, **{**SETTINGS, "seed": 1}, out=out)
    assert len(searched) == 5


def test_progress_counts_every_step_once(tmp_path: Path) -> None:
    class Counting:
        total, seen, open = 0, 0, 0

        def start(self, label: str, total: int | None) -> None:
            self.total, self.open = total or 0, self.open + 1

        def advance(self, n: int = 1) -> None:
            self.seen += n

        def done(self) -> None:
            self.open -= 1

    loaded = tiny_loaded("llama")
    chat = ChatFormat(loaded.tokenizer)
    cases = read_cases(write(tmp_path / "b.csv", HARMBENCH))
    for _ in range(2):  # the second time everything is already there
        progress = Counting()
        attack_gcg(loaded, chat, cases, **SETTINGS, out=tmp_path / "out", progress=progress)
        assert (progress.total, progress.seen, progress.open) == (6, 6, 0)


def test_errors_keep_what_is_finished_and_name_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny_loaded("llama")
    chat = ChatFormat(loaded.tokenizer)
    cases = read_cases(write(tmp_path / "b.csv", HARMBENCH))
    with pytest.raises(InputError, match="no behaviours"):
        attack_gcg(loaded, chat, [], **SETTINGS)
    with pytest.raises(UsageError, match=r"file\.txt"):
        attack_gcg(loaded, chat, cases, **SETTINGS, out=write(tmp_path / "file.txt", "x") / "out")
    search = run.gcg_search

    def failing(*args: object, **kwargs: object) -> list[GcgResult]:
        if args[2][0].behavior_id == "tides":  # type: ignore[index]
            raise NumericalError("not finite")
        return search(*args, **kwargs)

    monkeypatch.setattr(run, "gcg_search", failing)
    with pytest.raises(NumericalError):
        attack_gcg(loaded, chat, cases, **SETTINGS, out=tmp_path / "out")
    assert len(list((tmp_path / "out" / "cases").iterdir())) == 1


def test_a_behaviour_beyond_the_models_context_is_refused() -> None:
    loaded = tiny_loaded("gpt2")
    cases = gcg_cases([Prompt("long", "word " * 900, "own", "harmful")])
    with pytest.raises(InputError, match="the model's context has 512"):
        attack_gcg(loaded, ChatFormat(loaded.tokenizer), cases, **SETTINGS)
