"""The plan: what shares a key, and that nothing runs twice."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from caryatid.anchors import Anchor
from caryatid.artifacts import RunDirectory
from caryatid.config import StudyConfig
from caryatid.study.facts import Facts
from caryatid.study.plan import Plan, Planned, build_plan
from caryatid.study.runner import execute
from caryatid.study.series import SeedRef
from caryatid.study.stage import Stage, Study
from caryatid.study.work import Session, Work

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


def test_stages_that_share_a_key_run_once(tmp_path: Path) -> None:
    own = study(seeds=[0, 1, 2])
    inputs: list[dict[str, Any]] = [{"x": 1}, {"x": 2}, {"x": 1}]
    stages = [Planned(Say(own, SeedRef(seed)), (), given) for seed, given in enumerate(inputs)]
    plan = Plan(own, tuple(stages))
    run = RunDirectory.create(tmp_path / "run")
    Say.ran.clear()
    for executed in (2, 0):
        session = Session(own, plan, run, lambda *_: cast(Anchor, None))
        assert execute(session) == executed
        assert Say.ran == ["say/seed0", "say/seed1"]
    assert [session.results.of(Say(own, SeedRef(seed))) for seed in range(3)] == [Said("a")] * 3
