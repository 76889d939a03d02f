"""Settings of a GCG search. Free of torch, so that a configuration can embed them."""

import math
from dataclasses import dataclass
from typing import Literal

from ...settings import Settings, setting

Scoring = Literal["plain", "prefix", "incremental", "packed"]
SearchPrecision = Literal["auto", "model", "bfloat16", "float8"]
Ranking = Literal["bfloat16", "float8"]
SuffixLength = int | tuple[int, int]


def check_suffix_length(length: SuffixLength) -> None:
    """Raise ValueError unless `length` is at least 1, or a range of such lengths."""
    low, high = (length, length) if isinstance(length, int) else length
    if not 1 <= low <= high:
        raise ValueError(f"suffix_length {length} must be at least 1, or [lowest, highest]")


@dataclass(frozen=True)
class GcgSettings(Settings):
    """Size and manner of a search (arXiv 2307.15043); width and top_k default to the published values."""

    steps: int = setting(500, "GCG steps per behaviour.", ge=0)
    width: int = setting(512, "Candidates per step.", gt=0)
    top_k: int = setting(256, "Substitutions considered per position.", gt=0)
    suffix_length: SuffixLength = setting(
        20, "Tokens of the initial suffix, or [lowest, highest], from which each case draws its own."
    )
    stop_below: float | None = setting(
        None,
        "A behaviour's search ends once its target loss (nats per token) is below this; null: after its steps.",
    )
    search_precision: SearchPrecision = setting(
        "auto",
        "Precision in which candidates are ranked; model: the model's own; auto: bfloat16 for float32 models on"
        " CUDA; float8, for bfloat16 models, must be named.",
    )
    rescored: int | None = setting(
        None,
        "Best candidates of a step that are decided in the model's own precision; null: 8 where bfloat16 ranks them,"
        " half of the width, at least 64, where float8 does.",
        gt=0,
    )
    scoring: Scoring | None = setting(
        None, "How candidates are scored (attacks/gcg/scoring.py); null: the fastest on the device."
    )
    compiled: bool | None = setting(
        None,
        "Norms, gates and rotary embeddings compiled while candidates are scored; null: where that pays.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_suffix_length(self.suffix_length)

    def decided(self, ranking: Ranking) -> int:
        """How many of a step's candidates are decided in the model's own precision: `rescored`, or by the ranking.

        bfloat16 had the best candidate among its best 8 in .965 of 200 steps of width 128, and again in .98; float8
        among its best 8 in .68, 32 in .92, 64 in all; of 400 steps at 1.5B in .71, .99 and all (docs/performance.md).
        """
        if self.rescored is not None:
            return self.rescored
        return max(64, math.ceil(self.width / 2)) if ranking == "float8" else 8
