"""Attacks of a study: optimised against one anchor, on a subset of the HarmBench behaviours."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..artifacts import StageFolder
from ..attacks.goals import goals_of
from ..attacks.run import AttackPlan, run_attack
from ..attacks.saved import TestCase, load_cases, save_cases
from ..config.schema import AttackConfig
from .series import AnchorRef
from .stage import Stage
from .stages.prompts import Prompts
from .subsets import judged_requests
from .work import Work

FILE = "cases.json"


@dataclass(frozen=True)
class Attacked:
    """Test cases, and what they cost.

    Attributes:
        cases: one a behaviour. sha256: of the saved file. budget: columns of the `attacks` table.
    """

    cases: tuple[TestCase, ...]
    sha256: str
    budget: dict[str, Any]

    @property
    def suffixes(self) -> dict[str, str]:
        """Suffix by behaviour id."""
        return {case.behavior_id: case.suffix_text for case in self.cases}


class AttackStage(Stage[Attacked]):
    """What the fixed-source and the adaptive attack have in common."""

    result = Attacked

    @property
    def attack(self) -> AttackConfig:
        """The attack's settings."""
        raise TypeError(type(self).__name__)

    def size(self) -> str:
        return f"{self.attack.behaviours} behaviours × {self.attack.steps} {self.attack.method} steps"

    def against(self, work: Work, ref: AnchorRef) -> Attacked:
        """Optimise cases against an anchor; finished cases survive a kill."""
        loaded, attack = work.open(ref), self.attack
        behaviours = judged_requests(work.of(Prompts, None), attack.behaviours, ref.seed)
        goals = tuple(goals_of(behaviours))
        plan = AttackPlan(attack.method, attack.settings, goals, ref.seed, work.batch.gcg)
        results = run_attack(
            loaded, work.chat(loaded), plan, out=work.folder.work_dir, progress=work.progress
        )
        found = [TestCase.of(result) for result in results]
        source = {"model": work.study.facts.model_identity, "anchor": [ref.arm, ref.step]}
        saved = save_cases(work.folder.file(FILE), found, source | asdict(attack))
        budget = {
            "cases": len(found),
            "steps": max(r.steps for r in results),
            "stalled_steps": sum(r.stalled_steps for r in results),
            "candidates": sum(r.candidates for r in results),
            "forward_tokens": sum(r.forward_tokens for r in results),
            "seconds": sum(r.seconds for r in results),
            "batch_size": min(r.batch_size for r in results),
            "loss_before": _mean([r.losses[0] for r in results if r.losses]),
            "loss_after": _mean([r.loss for r in results if not math.isnan(r.loss)]),
        }
        return Attacked(tuple(found), saved.sha256, budget)

    def save(self, result: Attacked, folder: StageFolder) -> None:
        folder.write_json("budget.json", result.budget)

    def load(self, folder: StageFolder) -> Attacked:
        saved = load_cases(folder.file(FILE))
        return Attacked(tuple(saved.cases), saved.sha256, folder.read_json("budget.json"))

    def summary(self, result: Attacked) -> Mapping[str, Any]:
        return {"sha256": result.sha256, **result.budget}


def _mean(losses: list[float]) -> float | None:
    """None for an attack that has no loss."""
    return sum(losses) / len(losses) if losses else None
