"""One stage of a plan, and how stages are chained: a key follows from all that its content depends on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..artifacts import RunDirectory, Stage, content_key
from .series import AnchorRef

Kind = Literal[
    "prompts",
    "chat",
    "warmup",
    "cases",
    "train",
    "adaptive",
    "answers",
    "selection",
    "activations",
    "refusal_tokens",
    "bank",
    "reextract",
    "causal",
    "transfer",
    "analysis",
    "harm",
]

# Raised when a stage's computation changes, so that older results are not taken for new ones.
STAGE_VERSIONS: Mapping[str, int] = {
    **dict.fromkeys(("warmup", "cases", "train", "adaptive", "selection"), 2),
    "activations": 2,
    **dict.fromkeys(("answers", "harm"), 3),
    **dict.fromkeys(("bank", "reextract"), 3),
    "transfer": 4,
    **dict.fromkeys(("causal", "analysis"), 5),
}


@dataclass(frozen=True)
class StagePlan:
    """One stage: its kind, what its content depends on, and how large it is."""

    id: str
    kind: Kind
    params: Mapping[str, Any]
    needs: tuple[str, ...]
    size: str
    key_inputs: Mapping[str, Any] = field(repr=False)
    anchor: AnchorRef | None = None
    seed: int | None = None

    @property
    def key(self) -> str:
        """The content key, which equals that of the stage's folder."""
        return content_key({"stage": self.kind, "inputs": self.key_inputs})

    def stage(self, run: RunDirectory) -> Stage:
        """The stage's folder in a run directory."""
        return run.stage(self.kind, self.key_inputs)


class Builder:
    """Collects stages and chains their keys."""

    def __init__(self) -> None:
        self.stages: dict[str, StagePlan] = {}

    def add(
        self,
        kind: Kind,
        stage_id: str,
        params: Mapping[str, Any],
        needs: tuple[str, ...],
        size: str,
        *,
        anchor: AnchorRef | None = None,
        seed: int | None = None,
    ) -> str:
        inputs = {
            "version": STAGE_VERSIONS.get(kind, 1),
            "params": dict(params),
            "needs": {need: self.stages[need].key for need in needs},
        }
        self.stages[stage_id] = StagePlan(
            stage_id, kind, params, needs, size, inputs, anchor, anchor.seed if anchor else seed
        )
        return stage_id
