"""What stages work with: configuration, prompts, artifacts of earlier stages, and opened anchors."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..anchors import Anchor, anchor_from_json, builds_on, open_anchor, open_from
from ..artifacts import RunDirectory, Stage
from ..behaviour.judges.base import Judge, JudgeSpec
from ..behaviour.judges.registry import open_harm_judge, open_refusal_judge
from ..config import StudyConfig
from ..data.chat import ChatExample
from ..data.study_prompts import StudyPrompts
from ..models.batch import BatchSizes
from ..models.check import check_loaded
from ..models.load import LoadedModel
from ..models.template import ChatFormat
from ..progress import Progress
from ..training.ranks import ALONE, Ranks
from .plan import AnchorRef, Facts, Plan


@dataclass
class Context:
    """One run of a study.

    Keeps at most two models in memory: step 0 and the anchor in hand. An anchor that is step 0 with an adapter is made
    from it, without loading step 0 again.
    """

    config: StudyConfig
    facts: Facts
    plan: Plan
    run: RunDirectory
    progress: Progress
    announce: Callable[[str], None]
    settled_prompts: StudyPrompts | None
    ranks: Ranks = ALONE
    _open: dict[AnchorRef, LoadedModel] = field(default_factory=dict)

    def stage(self, stage_id: str) -> Stage:
        """The artifacts of another stage."""
        return self.plan[stage_id].stage(self.run)

    def anchor_stage(self, kind: str, ref: AnchorRef) -> Stage:
        """The artifacts that a stage kind has for an anchor."""
        return self.stage(f"{kind}/{ref.arm}@{ref.step}/seed{ref.seed}")

    @cached_property
    def prompts(self) -> StudyPrompts:
        """The study's prompts, from the run directory."""
        return StudyPrompts.from_json(self.stage("prompts").read_json("prompts.json"))

    @cached_property
    def chat_examples(self) -> dict[str, list[ChatExample]]:
        """Chat examples by use: train, heldout, warmup."""
        stored: dict[str, list[Any]] = self.stage("chat").read_json("examples.json")
        return {name: [ChatExample.from_json(row) for row in rows] for name, rows in stored.items()}

    @cached_property
    def batch(self) -> BatchSizes:
        """The batch shapes that were planned."""
        return BatchSizes(**self.facts.batch)

    @cached_property
    def judge(self) -> Judge:
        """The refusal judge of this study."""
        return open_refusal_judge(JudgeSpec(self.config.behaviour.refusal_judge))

    @cached_property
    def harm_judge(self) -> Judge:
        """The harmfulness judge; a judge that is a model is loaded once, after the anchors were let go."""
        self.close()
        return open_harm_judge(JudgeSpec(**self.config.behaviour.harm_judge.model_dump()))

    def chat(self, loaded: LoadedModel) -> ChatFormat:
        """The chat format with the study's system message."""
        return ChatFormat(loaded.tokenizer, self.config.model.system)

    def anchor(self, ref: AnchorRef) -> Anchor:
        """Where an anchor's weights are."""
        model = self.config.model
        if ref.arm == "base":
            if not self.config.warmup.enabled or self.config.observed:
                return Anchor("base", 0, model.spec, revision=model.revision)
            stage = self.stage(f"warmup/seed{ref.seed}")
            return anchor_from_json(stage.read_json("anchor.json"), root=stage.path)
        if self.config.observed:
            for entry in self.config.observed_anchors:
                if (entry.arm, entry.step) == (ref.arm, ref.step):
                    adapters = (str(Path(entry.adapter)),) if entry.adapter else ()
                    revision = entry.revision or (None if entry.model else model.revision)
                    return Anchor(
                        ref.arm,
                        ref.step,
                        model.spec,
                        adapters=adapters,
                        weights=entry.model,
                        revision=revision,
                    )
        stage = self.stage(f"train/{ref.arm}/seed{ref.seed}")
        (stored,) = [row for row in stage.read_json("anchors.json") if row["step"] == ref.step]
        return anchor_from_json(stored, root=self.run.path)

    def open(self, ref: AnchorRef) -> LoadedModel:
        """The anchor's model, ready for measurement."""
        if ref not in self._open:
            base = AnchorRef(ref.seed, "base", 0)
            for other in [key for key in self._open if key != base]:
                del self._open[other]
            gc.collect()
            self._open[ref] = self._made_from_step_0(ref, base) or self.fresh(self.anchor(ref))
        return self._open[ref]

    def _made_from_step_0(self, ref: AnchorRef, base: AnchorRef) -> LoadedModel | None:
        """The anchor as step 0 with further adapters; None where it is something else."""
        start, anchor = self.anchor(base), self.anchor(ref)
        if ref == base or not builds_on(anchor, start):
            return None
        return open_from(anchor, start, self.open(base))

    def fresh(self, anchor: Anchor) -> LoadedModel:
        """An anchor's model, loaded anew; weights that somebody else trained are checked first."""
        loaded = open_anchor(
            anchor,
            dtype=self.facts.dtype,
            device=self.facts.device,
            trust_remote_code=self.config.model.trust_remote_code,
        )
        if self.config.observed and anchor.weights:
            check_loaded(loaded, self.config.model.system)
        return loaded

    def close(self) -> None:
        """Let go of all models."""
        self._open.clear()
        gc.collect()
