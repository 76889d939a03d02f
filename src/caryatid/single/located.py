"""What `caryatid locate` measures, and what it finds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors.torch import save

from ..artifacts import write_bytes
from ..causal.locate import Carrier
from ..data.study_prompts import Source

if TYPE_CHECKING:
    import pandas as pd

HARMFUL, HARMLESS = ("harmbench", "xstest_unsafe"), "chat_heldout"
NAN = math.nan
REMEDIES: Mapping[str, str] = {
    "no refusal": "There is nothing to locate. Try another system message (--system), harmful prompts that it does "
    "refuse (--prompts harmbench=FILE), or a model that was trained to refuse.",
    "undiscriminating refusal": "It refuses harmless prompts too, so that no direction tells the two apart. Try "
    "another system message (--system ''), or look with `caryatid evaluate --suite xstest`.",
    "gap too small": "Its refusals hardly begin with tokens of their own. Try another system message, or more prompts "
    "(--selection); with --thinking keep positions stand before the thought: use off or strip.",
    "no admissible carrier": "No single direction removes and induces refusal cleanly. Look at the table of "
    "candidates; try all positions and layers (--thorough), or a study, which has further profiles and ranks.",
}


@dataclass(frozen=True)
class LocateSettings:
    """How much is measured.

    Attributes:
        source: where prompts come from.
        files: the user's own prompts by field.
        seed: of prompts and controls.
        extraction: prompts of each kind that make directions.
        selection: prompts of each kind that choose among them.
        evaluation: harmful prompts asked, and at most as many harmless ones.
        utility: prompts of the utility audit.
        positions: last prompt positions that are scored; 0: all after the user's text.
        layer_stride: every so many layers are scored.
        discard_below: candidates that remove less than this share of the gap on the first `discard_after` harmful
            prompts are not scored further; None: all are.
        discard_after: see `discard_below`.
        resamples: of the extraction prompts.
        likely: candidates scored in each resample.
        draws: of the bootstrap.
        controls: random subspaces beside the carrier.
        control_prompts: so many prompts at most are asked under each control; 0: all that the carrier needs.
        max_new_tokens: token limit of answers.
    """

    source: Source = "auto"
    files: Mapping[str, Path] = field(default_factory=dict)
    seed: int = 0
    extraction: int = 64
    selection: int = 32
    evaluation: int = 64
    utility: int = 24
    positions: int = 0
    layer_stride: int = 1
    discard_below: float | None = None
    discard_after: int = 8
    resamples: int = 20
    likely: int = 8
    draws: int = 1000
    controls: int = 8
    control_prompts: int = 0
    max_new_tokens: int = 24

    @classmethod
    def for_device(cls, kind: str, **given: Any) -> Self:
        """Everything on an accelerator; on a CPU the last position, with a first pass that leaves out idle layers.

        That pass asks for the bypass effect that the profile *calibrated* asks for.
        """
        cheap: dict[str, Any] = {}
        if kind == "cpu":
            cheap = {"positions": 1, "discard_below": 0.5, "resamples": 4, "likely": 2, "control_prompts": 12}
        return cls(**{**cheap, **given})

    @property
    def limits(self) -> dict[str, int]:
        """Largest number of prompts by field."""
        sides = ("harmful", "harmless")
        found = {f"extraction_{side}": self.extraction for side in sides}
        found |= {f"selection_{side}": self.selection for side in sides}
        found |= dict.fromkeys(HARMFUL, -(-self.evaluation // len(HARMFUL)))
        return {**found, HARMLESS: self.evaluation, "utility": self.utility}


@dataclass(frozen=True)
class Located:
    """What was found.

    Attributes:
        facts: as `caryatid locate --json` prints it, NaN for null.
        carrier: None with a named reason.
        candidates: rows, one a scored candidate.
        effects: rows: intervention, control, read_out, value, lo, hi, n.
        places: shares of bootstrap draws in which the best candidate is at a layer, by layer.
        remedy: what to try where there is no carrier.
        notes: where prompts come from, and what a user should know about the model.
    """

    facts: dict[str, Any]
    carrier: Carrier | None
    candidates: tuple[dict[str, Any], ...]
    effects: tuple[dict[str, Any], ...]
    places: dict[int, float]
    remedy: str | None
    notes: tuple[str, ...]

    def to_pandas(self) -> "pd.DataFrame":
        """The scored candidates as a data frame."""
        import pandas as pd

        return pd.DataFrame(list(self.candidates))

    def __repr__(self) -> str:
        found = self.carrier or f"no carrier: {self.facts['reason']}"
        return f"Located({self.facts['model']!r}, {found}, {len(self.candidates)} candidates)"

    def to_json(self) -> dict[str, Any]:
        """`facts` with null for NaN."""
        found: dict[str, Any] = _nulls(self.facts)
        return found

    def save_carrier(self, path: Path) -> None:
        """Write `direction`, `basis` and `layer`, as `caryatid intervene --carrier` reads them.

        Raises:
            ValueError: there is no carrier.
        """
        if self.carrier is None:
            raise ValueError("there is no carrier")
        found = self.carrier
        tensors = {"direction": found.direction.contiguous(), "basis": found.basis.contiguous()}
        tensors["layer"] = torch.tensor(found.site.layer)
        position = str(found.site.position)
        write_bytes(path, save(tensors, metadata={"model": self.facts["identity"], "position": position}))


def _nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _nulls(one) for key, one in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
