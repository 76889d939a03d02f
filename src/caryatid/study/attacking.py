"""Attacks of a study: optimised against one anchor, on a subset of the HarmBench behaviours."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..artifacts import StageFolder
from ..attacks.cases import TestCase, load_cases, save_cases
from ..attacks.run import attack_gcg, gcg_cases
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
        return f"{self.attack.behaviours} behaviours × {self.attack.steps} GCG steps"

    def against(self, work: Work, ref: AnchorRef) -> Attacked:
        """Optimise cases against an anchor; finished cases survive a kill."""
        loaded, attack = work.open(ref), self.attack
        behaviours = judged_requests(work.of(Prompts, None), attack.behaviours)
        results = attack_gcg(
            loaded,
            work.chat(loaded),
            gcg_cases(behaviours),
            steps=attack.steps,
            width=attack.width,
            top_k=attack.top_k,
            batch_size=work.batch.gcg,
            seed=ref.seed,
            suffix_length=attack.suffix_length,
            out=work.folder.work_dir,
            progress=work.progress,
        )
        texts = {row.id: row.user_text for row in behaviours}
        found = [
            TestCase(r.behavior_id, texts[r.behavior_id], r.target, r.suffix_text, r.suffix_ids, r.loss)
            for r in results
        ]
        source = {"model": work.study.facts.model_identity, "anchor": [ref.arm, ref.step]}
        saved = save_cases(work.folder.file(FILE), found, source | attack.model_dump())
        budget = {
            "cases": len(found),
            "steps": attack.steps,
            "stalled_steps": sum(r.stalled_steps for r in results),
            "candidates": sum(r.candidates for r in results),
            "forward_tokens": sum(r.forward_tokens for r in results),
            "seconds": sum(r.seconds for r in results),
            "batch_size": min(r.batch_size for r in results),
            "loss_before": sum(r.losses[0] for r in results) / len(results),
            "loss_after": sum(r.loss for r in results) / len(results),
        }
        return Attacked(tuple(found), saved.sha256, budget)

    def save(self, result: Attacked, folder: StageFolder) -> None:
        folder.write_json("budget.json", result.budget)

    def load(self, folder: StageFolder) -> Attacked:
        saved = load_cases(folder.file(FILE))
        return Attacked(tuple(saved.cases), saved.sha256, folder.read_json("budget.json"))

    def summary(self, result: Attacked) -> Mapping[str, Any]:
        return {"sha256": result.sha256, **result.budget}
