"""The plan: an order, keys that follow from settings and needs alone, and that nothing runs twice."""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from caryatid.anchors import Anchor
from caryatid.artifacts import RunDirectory
from caryatid.config import StudyConfig
from caryatid.study import plan as planning
from caryatid.study.facts import Facts
from caryatid.study.plan import Plan, Planned, build_plan
from caryatid.study.runner import execute
from caryatid.study.series import SeedRef
from caryatid.study.stage import AnyStage, Scope, Stage, Study, stage_kinds
from caryatid.study.work import Session, Work, gpus_of

FACTS = Facts(
    model_identity="m",
    dtype="float32",
    device="cpu",
    prompts_source="embedded",
    prompts_note="",
    prompts_sha256="p",
    batch={"forward": 1, "generate": 1, "gcg": 1, "train": 1},
)


def study(**settings: Any) -> Study:
    return Study(StudyConfig.model_validate(settings), FACTS)


@pytest.mark.parametrize("warmed", [False, True])
def test_only_what_does_not_depend_on_the_seed_is_shared_by_seeds(warmed: bool) -> None:
    attacks = {"adaptive": {"enabled": True}}
    plan = build_plan(study(seeds=[0, 1], warmup={"enabled": warmed}, attacks=attacks))
    keys = Counter((entry.stage.kind, entry.key) for entry in plan)
    shared = {kind for (kind, _), count in keys.items() if count > 1}
    assert shared == (set() if warmed else {"activations", "selection"})


@dataclass(frozen=True)
class Said:
    """What the toy stage says."""

    text: str


class Say(Stage[Said]):
    """Says the same for every seed."""

    kind, scope, result = "say", "seed", Said
    ran: ClassVar[list[str]] = []

    def run(self, work: Work) -> Said:
        self.ran.append(self.id)
        return Said("a")


def test_where_blocks_lie_changes_no_key() -> None:
    places: tuple[Any, ...] = (None, "auto", {"": 0}, {"model.layers.0": 0, "model.layers.1": "cpu"})
    plans = [build_plan(study(model={"device_map": place})) for place in places]
    whole, *split = [[(entry.id, entry.key) for entry in plan] for plan in plans]
    assert len(whole) > 20
    assert split == [whole] * 3


@pytest.mark.parametrize(
    ("device", "place", "expected"),
    [
        ("cpu", "auto", 0),
        ("cuda", None, 1),
        ("cuda", {"a": 0, "b": "cuda:1", "c": 1, "d": "cpu"}, 2),
        ("cuda:1", {"": 1}, 1),
    ],
)
def test_gpus_that_a_process_measures_with(device: str, place: Any, expected: int) -> None:
    own = study(model={"device_map": place})
    assert gpus_of(replace(own, facts=replace(FACTS, device=device))) == expected


def test_stages_that_share_a_key_run_once(tmp_path: Path) -> None:
    own = study(seeds=[0, 1, 2])
    inputs: list[dict[str, Any]] = [{"x": 1}, {"x": 2}, {"x": 1}]
    stages = [Planned(Say(own, SeedRef(seed)), (), given) for seed, given in enumerate(inputs)]
    plan = Plan(own, tuple(stages))
    run = RunDirectory.create(tmp_path / "run")
    Say.ran.clear()
    for executed in (2, 0):
        session = Session(own, plan, run, lambda *_: cast(Anchor, None))
        assert len(execute(session)) == executed
        assert Say.ran == ["say/seed0", "say/seed1"]
    assert [session.results.of(Say(own, SeedRef(seed))) for seed in range(3)] == [Said("a")] * 3


@pytest.mark.parametrize(
    ("changed", "own"),
    [
        ({"verdict": {"angle": 12.0}}, {"verdict"}),
        ({"geometry": {"bootstrap_draws": 200}}, {"uncertainty", "verdict"}),
        ({"geometry": {"min_gap": 2.0}}, {"profile", "carrier", "reextraction", "uncertainty", "behaved"}),
        ({"causal": {"transfer_random": 9}}, {"transfer"}),
        ({"causal": {"prompts": 9}}, {"interventions"}),
        ({"training": {"learning_rate": 0.5}}, {"train"}),
        ({"behaviour": {"harm_judge": "llama-guard"}}, {"harm"}),
        ({"behaviour": {"max_new_tokens": 77}}, {"answers", "interventions"}),  # transfer needs the answers
        ({"attacks": {"fixed_source": {"steps": 3}}}, {"cases"}),
        ({"prompts": {"limits": {"pool": 9}}}, {"prompts"}),
    ],
)
def test_a_setting_changes_the_keys_of_its_stages_and_of_all_that_follow(
    changed: dict[str, Any], own: set[str]
) -> None:
    before, after = (build_plan(study(warmup={"enabled": True}, **given)) for given in ({}, changed))
    assert [entry.id for entry in before] == [entry.id for entry in after]
    differ = {entry.id for entry in after if entry.key != before[entry.id].key}
    mine = {entry.id for entry in after if entry.inputs["settings"] != before[entry.id].inputs["settings"]}
    assert {after[name].stage.kind for name in mine} == own
    assert differ == {entry.id for entry in after if entry.id in mine or entry.upstream & mine}


def test_a_smaller_forward_keeps_what_was_trained_and_attacked() -> None:
    """Somebody whose memory ran out and who lowers one batch size loses no stage that does not use it."""
    smaller = replace(FACTS, batch={**FACTS.batch, "forward": 7})
    before = build_plan(study(seeds=[0]))
    after = build_plan(Study(StudyConfig.model_validate({"seeds": [0]}), smaller))
    differ = {entry.stage.kind for entry in after if entry.key != before[entry.id].key}
    assert {"activations", "answers"} <= differ
    assert not {"chat", "train", "cases", "selection"} & differ


def test_every_stage_follows_what_it_needs_and_an_anchor_is_opened_once() -> None:
    plan = build_plan(study(seeds=[0, 1], attacks={"adaptive": {"enabled": True}}))
    numbers = {entry.id: number for number, entry in enumerate(plan)}
    for entry in plan:
        assert all(numbers[need.id] < numbers[entry.id] for need in entry.needs)
    assert len({entry.id for entry in plan}) == len(plan)
    answers = [entry.id for entry in plan if entry.stage.kind in ("answers", "selection", "activations")]
    places = [name.split("/", 1)[1] for name in answers]
    assert len(list(itertools.groupby(places))) == len(set(places))


Needs = Callable[[AnyStage], Iterable[AnyStage]]


def toy(kind: str, scope: Scope = "seed", needs: Needs = lambda stage: (), **more: Any) -> type[AnyStage]:
    """A stage that is nothing but its needs."""
    return type(kind, (Stage,), {"kind": kind, "scope": scope, "result": Said, "needs": needs, **more})


def toy_plan(monkeypatch: pytest.MonkeyPatch, *kinds: type[AnyStage], **settings: Any) -> Plan:
    monkeypatch.setattr(planning, "stage_kinds", lambda: list(kinds))
    return build_plan(study(arms=["sft"], anchors=[0, 5], **settings))


def test_a_plan_of_toys_is_in_order_whatever_the_order_of_registration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = toy("first", "study")
    second = toy("second", "anchor", lambda stage: [stage.at(first, None)])
    third = toy(
        "third", "pair", lambda stage: [stage.at(second, ref) for ref in (stage.place.a, stage.place.b)]
    )
    for kinds in itertools.permutations((first, second, third)):
        plan = toy_plan(monkeypatch, *kinds)
        assert [entry.id for entry in plan] == [
            "first", "second/base@0/seed0", "second/sft@5/seed0", "third/base@0-sft@5/seed0",
        ]  # fmt: skip
        assert plan["third/base@0-sft@5/seed0"].upstream == {entry.id for entry in list(plan)[:3]}
        assert [entry.id for entry in plan.upto(second)] == [entry.id for entry in list(plan)[:3]]
    again = toy_plan(monkeypatch, toy("first", "study", version=2), second)
    assert again["first"].key != plan["first"].key
    assert again["second/sft@5/seed0"].key != plan["second/sft@5/seed0"].key


def test_stages_that_need_each_other_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    one = toy("one", needs=lambda stage: [stage.at(two)])
    two = toy("two", needs=lambda stage: [stage.at(one)])
    with pytest.raises(ValueError, match="one/seed0 → two/seed0 → one/seed0"):
        toy_plan(monkeypatch, one, two)


def test_a_need_that_is_not_part_of_the_study_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = toy("absent", places=classmethod(lambda cls, study: []))
    asking = toy("asking", needs=lambda stage: [stage.at(absent)])
    with pytest.raises(ValueError, match="asking/seed0 needs absent/seed0, which is not part of this study"):
        toy_plan(monkeypatch, asking, absent)
    elsewhere = toy("elsewhere", needs=lambda stage: [stage.at(Say, SeedRef(9))])
    with pytest.raises(ValueError, match="elsewhere/seed0 needs say/seed9"):
        toy_plan(monkeypatch, elsewhere, Say)


def test_a_stage_reads_what_it_needs_directly_or_not_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Otherwise its key would not know of a change there."""
    below = toy("below", needs=lambda stage: [stage.at(Say)], run=lambda stage, work: Said("b"))
    reads: dict[str, Any] = {"run": lambda stage, work: Said(work.of(below).text + work.of(Say).text)}
    for name, needs, message in (
        ("declared", below, ""),
        ("undeclared", Say, "undeclared/seed0 reads below/seed0 without needing it"),
    ):
        reader = toy(name, needs=lambda stage, needed=needs: [stage.at(needed)], **reads)
        plan = toy_plan(monkeypatch, Say, below, reader)
        session = Session(
            plan.study, plan, RunDirectory.create(tmp_path / name), lambda *_: cast(Anchor, None)
        )
        if message:
            with pytest.raises(ValueError, match=message):
                execute(session)
            assert plan[f"{name}/seed0"].folder(session.run).state() == "failed"
        else:
            assert len(execute(session)) == 3
            assert session.results.of(reader(plan.study, SeedRef(0))) == Said("ba")


def test_the_walk_through_the_code_names_every_stage_once() -> None:
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
    heads = " ".join(re.findall(r"\*\*(`.*?)\*\*", page))
    named = re.findall(r"`(\w+)`", heads)
    assert sorted(named) == sorted(kind.kind for kind in stage_kinds())
