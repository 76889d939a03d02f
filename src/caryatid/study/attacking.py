"""Attacks of a study: optimised against one anchor, on a subset of the HarmBench behaviours."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from ..artifacts import StageFolder
from ..attacks.base import AttackResult
from ..attacks.gcg.settings import GcgSettings
from ..attacks.goals import goals_of
from ..attacks.run import AttackPlan, goals_together, run_attack
from ..attacks.saved import TestCase, load_cases, save_cases
from ..behaviour.answering import answered_by
from ..config.schema import AttackConfig
from ..models.sizes import BatchSizes
from ..models.turns import Sent
from ..settings import Settings
from .costs import Sizes, WorkUnits
from .series import AnchorRef
from .stage import Stage
from .stages.prompts import Prompts
from .subsets import judged_requests
from .work import Work

FILE = "cases.json"
_WHERE = ("enabled", "at")  # where cases are made: no part of what they depend on


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
    def sent(self) -> dict[str, Sent]:
        """What is sent by behaviour id."""
        return {case.behavior_id: case.sent for case in self.cases}


class AttackStage(Stage[Attacked]):
    """What the fixed-source and the adaptive attack have in common; `name`: in the configuration and in tables."""

    name: ClassVar[Literal["fixed_source", "adaptive"]]
    result = Attacked

    @property
    def attack(self) -> AttackConfig:
        """The attack's settings."""
        found: AttackConfig = getattr(self.config.attacks, self.name)
        return found

    @property
    def together(self) -> int:
        """Behaviours attacked together: as configured, or chosen from what was settled when the study was planned."""
        facts, attack = self.study.facts, self.attack
        chosen = attack.together or goals_together(attack.settings, facts.device, BatchSizes(**facts.batch))
        return min(chosen, attack.behaviours)

    @property
    def attack_settings(self) -> dict[str, Any]:
        """What cases depend on besides the model and the seed, as plain JSON values."""
        settings = self.study.settings["attacks"][self.name]
        kept = {key: value for key, value in settings.items() if key not in _WHERE}
        rescored = getattr(self.searched, "rescored", self.attack.rescored or 8)
        return {**kept, "rescored": rescored, "together": self.together}

    @property
    def searched(self) -> Settings:
        """The settings of the attack, with the number of rescored candidates that the device's precision asks for."""
        settings = self.attack.settings
        if not isinstance(settings, GcgSettings):
            return settings
        ranking = self.study.facts.ranking(settings.search_precision)
        return replace(settings, rescored=settings.decided(ranking))

    def size(self) -> str:
        attack = self.attack
        together = f", {self.together} together" if self.together > 1 else ""
        steps = getattr(attack.settings, "steps", None)
        each = attack.method if steps is None else f"{steps} {attack.method} steps"
        return f"{attack.behaviours} behaviours{together} × {each}"

    def work_units(self, sizes: Sizes) -> WorkUnits:
        attack, settings = self.attack, self.attack.settings
        goals, width = attack.behaviours, getattr(settings, "width", 1)
        steps = goals * getattr(settings, "steps", 1)
        return WorkUnits(attacks=goals, attack_steps=steps, candidates=steps * width)

    @property
    def target(self) -> AnchorRef:
        """The anchor that is attacked."""
        found: AnchorRef = self.place
        return found

    def parts(self) -> int:
        """Whole blocks of cases that are attacked together, so that any number of parts gives the same cases."""
        return math.ceil(self.attack.behaviours / self.together)

    def run_part(self, work: Work, shard: tuple[int, int]) -> None:
        self._attacked(work, shard)

    def _attacked(self, work: Work, shard: tuple[int, int] = (0, 1)) -> tuple[AttackPlan, list[AttackResult]]:
        """Attack the behaviours of a shard; finished cases survive a kill."""
        loaded, attack, seed = work.open(self.target), self.attack, self.target.seed
        behaviours = judged_requests(work.of(Prompts, None), attack.behaviours, seed)
        goals = tuple(goals_of(behaviours))
        plan = AttackPlan(attack.method, self.searched, goals, seed, work.batch.gcg, self.together)
        folder, chat = work.folder.work_dir, work.chat(loaded)
        if shard[0] >= len(plan.blocks()):  # there are fewer behaviours than were asked for
            return plan, []
        return plan, run_attack(
            loaded,
            chat,
            plan,
            shard=shard,
            out=folder,
            progress=work.progress,
            answered=answered_by(work.judge),
        )

    def run(self, work: Work) -> Attacked:
        plan, results = self._attacked(work)
        ref = self.target
        found = [TestCase.of(result) for result in results]
        source = {"model": work.study.facts.model_identity, "anchor": [ref.arm, ref.step]}
        saved = save_cases(work.folder.file(FILE), found, source | self.attack_settings)
        budget = {
            "cases": len(found),
            "together": plan.block_size,
            "steps": max(r.steps for r in results),
            "stopped_early": sum(r.stopped != "steps" for r in results),
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
