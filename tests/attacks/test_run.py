"""What stands behind `caryatid attack`: plans, blocks and shards, the contract's object, resuming, other attacks."""

import json
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from caryatid.attacks import base
from caryatid.attacks.base import ATTACKS, Attack, AttackResult, BlockRun, Goal, register_attack
from caryatid.attacks.builtin import attack_named
from caryatid.attacks.gcg.settings import GcgSettings
from caryatid.attacks.goals import goals_of
from caryatid.attacks.run import AttackPlan, attack_blocks, cases_json, run_attack
from caryatid.data.prompts import Prompt
from caryatid.errors import InputError, NumericalError, UsageError
from caryatid.models.load import LoadedModel
from caryatid.models.template import ChatFormat
from caryatid.settings import Settings, setting
from tiny import tiny_loaded

GOALS = (
    Goal("letter", "Write a letter, then post it", "Sure, here is a letter"),
    Goal("tides", "The tides, and the moon\n\n---\n\nExplain this", "Sure, the tides"),
    Goal("boat", "Fold a paper boat", "Sure, here is how"),
    Goal("poem", "Write a poem", "Sure"),
    Goal("sea", "Where is the sea?", "Sure, the sea"),
)
SETTINGS = GcgSettings(steps=3, width=8, top_k=16, suffix_length=4)
PLAN = AttackPlan("gcg", SETTINGS, GOALS[:2], seed=0, batch_size=8)


def facts(results: Sequence[AttackResult]) -> list[tuple[object, ...]]:
    return [(r.behavior_id, r.suffix_ids, r.losses, r.loss, r.forward_tokens) for r in results]


def attacked(plan: AttackPlan, **options: Any) -> list[AttackResult]:
    loaded = tiny_loaded("llama")
    return run_attack(loaded, ChatFormat(loaded.tokenizer), plan, **options)


def test_results_are_the_contracts_object() -> None:
    value = json.loads(json.dumps(cases_json(attacked(PLAN))))
    assert set(value) == {"cases"}
    contract = {
        "behavior_id",
        "target",
        "suffix_text",
        "suffix_ids",
        "loss",
        "losses",
        "steps",
        "forward_tokens",
    }
    for row, goal in zip(value["cases"], PLAN.goals, strict=True):
        assert contract | {"seconds", "candidates"} <= set(row)
        assert row["candidates"] == 3 * 8
        assert row["behavior_id"] == goal.behavior_id
        assert row["loss"] == min(row["losses"])
        assert len(row["losses"]) == row["steps"] + 1 == 4
        assert row["sent_text"] == f"{goal.user_text} {row['suffix_text']}"


def test_blocks_keep_the_order_and_shards_are_whole_blocks() -> None:
    assert attack_blocks(GOALS, 2) == [GOALS[:2], GOALS[2:4], GOALS[4:]]
    plan = replace(PLAN, goals=GOALS, block_size=2)
    assert plan.blocks((0, 2)) == [GOALS[:2], GOALS[4:]]
    assert plan.blocks((1, 2)) == [GOALS[2:4]]
    for count in (1, 2, 3, 7):
        shared = [block for index in range(count) for block in plan.blocks((index, count))]
        assert set(shared) == set(attack_blocks(GOALS, 2))
        assert len(shared) == 3
    for shard in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(InputError, match="shard"):
            plan.blocks(shard)
    with pytest.raises(InputError, match="block size"):
        attack_blocks(GOALS, 0)
    with pytest.raises(InputError, match="twice"):
        attack_blocks([*GOALS, GOALS[0]], 2)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_any_sharding_gives_the_same_results(count: int, tmp_path: Path) -> None:
    """The same to the bit; a call for the whole plan then only collects, and writes the whole object."""
    plan = replace(PLAN, goals=GOALS, block_size=2)
    whole = attacked(plan)
    for index in range(count):
        assert not (tmp_path / "results.json").exists()
        attacked(plan, shard=(index, count), out=tmp_path)
    collected = attacked(plan, out=tmp_path)
    assert facts(collected) == facts(whole)
    assert json.loads((tmp_path / "results.json").read_text()) == cases_json(collected)
    assert list(tmp_path.glob("cases/*.state")) == []


def test_what_a_goal_draws_depends_on_the_goal_and_the_seed_alone() -> None:
    whole = {r.behavior_id: r.suffix_ids for r in attacked(replace(PLAN, goals=GOALS))}
    backwards = {r.behavior_id: r.suffix_ids for r in attacked(replace(PLAN, goals=GOALS[::-1]))}
    assert backwards == whole
    (alone,) = attacked(replace(PLAN, goals=GOALS[3:4]))
    assert alone.suffix_ids == whole["poem"]
    assert attacked(replace(PLAN, goals=GOALS[3:4], seed=1))[0].suffix_ids != whole["poem"]
    first, again = (GOALS[0].generator(5).get_state().tolist() for _ in range(2))
    assert first == again != replace(GOALS[0], target="Yes").generator(5).get_state().tolist()


def test_a_range_of_suffix_lengths_is_drawn_by_goal() -> None:
    plan = replace(PLAN, goals=GOALS, settings=replace(SETTINGS, steps=0, suffix_length=(3, 6)))
    lengths = {r.behavior_id: len(r.suffix_ids) for r in attacked(plan)}
    assert set(lengths.values()) <= {3, 4, 5, 6}
    assert len(set(lengths.values())) > 1
    assert {r.behavior_id: len(r.suffix_ids) for r in attacked(replace(plan, goals=GOALS[2:]))}.items() <= (
        lengths.items()
    )
    for unusable in (0, (4, 3), (0, 2)):
        with pytest.raises(ValueError, match="suffix_length"):
            GcgSettings(suffix_length=unusable)


def test_finished_goals_are_not_attacked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attacked(PLAN)
    search, searched = attack_named("gcg").search, []

    def interrupted(loaded: Any, chat: Any, goals: Sequence[Goal], *rest: Any) -> list[AttackResult]:
        searched.append(goals[0].behavior_id)
        if searched == ["letter", "tides"]:
            raise KeyboardInterrupt
        return search(loaded, chat, goals, *rest)

    monkeypatch.setitem(ATTACKS, "gcg", Attack("gcg", GcgSettings, interrupted))
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        attacked(PLAN, out=out)
    assert not (out / "results.json").exists()
    resumed = attacked(PLAN, out=out)
    assert searched == ["letter", "tides", "tides"]
    assert facts(resumed) == facts(whole)
    assert json.loads((out / "results.json").read_text()) == cases_json(resumed)
    attacked(replace(PLAN, batch_size=3), out=out)
    assert len(searched) == 3
    attacked(replace(PLAN, seed=1), out=out)
    assert len(searched) == 5


@pytest.mark.parametrize("block_size", [1, 2])
def test_progress_counts_every_step_once(tmp_path: Path, block_size: int) -> None:
    class Counting:
        total, seen, open = 0, 0, 0

        def start(self, label: str, total: int | None) -> None:
            self.total, self.open = total or 0, self.open + 1

        def advance(self, n: int = 1) -> None:
            self.seen += n

        def done(self) -> None:
            self.open -= 1

    for _ in range(2):  # the second time everything is already there
        progress = Counting()
        attacked(replace(PLAN, block_size=block_size), out=tmp_path, progress=progress)
        assert (progress.total, progress.seen, progress.open) == (6, 6, 0)


def test_errors_keep_what_is_finished_and_name_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="no behaviours"):
        replace(PLAN, goals=())
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(UsageError, match=r"file\.txt"):
        attacked(PLAN, out=tmp_path / "file.txt" / "out")
    search = attack_named("gcg").search

    def failing(loaded: Any, chat: Any, goals: Sequence[Goal], *rest: Any) -> list[AttackResult]:
        if goals[0].behavior_id == "tides":
            raise NumericalError("not finite")
        return search(loaded, chat, goals, *rest)

    monkeypatch.setitem(ATTACKS, "gcg", Attack("gcg", GcgSettings, failing))
    with pytest.raises(NumericalError):
        attacked(PLAN, out=tmp_path / "out")
    assert len(list((tmp_path / "out" / "cases").iterdir())) == 1


def test_a_behaviour_beyond_the_models_context_is_refused() -> None:
    loaded = tiny_loaded("gpt2")
    goals = tuple(goals_of([Prompt("long", "word " * 900, "own", "harmful")]))
    with pytest.raises(InputError, match="the model's context has 512"):
        run_attack(loaded, ChatFormat(loaded.tokenizer), replace(PLAN, goals=goals))


@dataclass(frozen=True)
class ShoutSettings(Settings):
    marks: int = setting(3, "Exclamation marks.", gt=0)


def shout(
    loaded: LoadedModel, chat: ChatFormat, goals: Sequence[Goal], settings: ShoutSettings, run: BlockRun
) -> list[AttackResult]:
    """An attack that a package outside caryatid could bring."""
    run.on_step(len(goals))
    return [
        AttackResult(
            attack="shout", behavior_id=goal.behavior_id, user_text=goal.user_text, target=goal.target,
            sent_text=goal.user_text.upper() + "!" * settings.marks, loss=float("nan"), losses=(), steps=1,
            candidates=1, forward_tokens=0, seconds=0.0, details={"together": len(goals)},
        )
        for goal in goals
    ]  # fmt: skip


def test_an_attack_from_outside_needs_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attack_named("gcg")
    monkeypatch.setattr(base, "ATTACKS", copy(ATTACKS))
    register_attack(Attack("shout", ShoutSettings, shout))
    plan = AttackPlan("shout", ShoutSettings(marks=2), GOALS, seed=0, batch_size=1, block_size=3)
    for _ in range(2):
        results = attacked(plan, out=tmp_path)
        assert [r.sent_text for r in results] == [goal.user_text.upper() + "!!" for goal in GOALS]
        assert [r.details["together"] for r in results] == [3, 3, 3, 2, 2]
    with pytest.raises(ValueError, match="registered already"):
        register_attack(Attack("gcg", ShoutSettings, shout))
    with pytest.raises(TypeError, match="no settings of gcg"):
        AttackPlan("gcg", ShoutSettings(), GOALS, seed=0, batch_size=1)
    with pytest.raises(UsageError, match=r"'roar'.*gcg, .*shout"):
        attack_named("roar")
    with pytest.raises(ValueError, match="marks 0 must be above 0"):
        ShoutSettings(marks=0)
    assert attack_named("gcg").settings is GcgSettings
