"""The thresholds of the verdict (protocol §7)."""

from dataclasses import dataclass

from ..settings import Settings, setting


@dataclass(frozen=True)
class Thresholds(Settings):
    """Angles in degrees, depths in shares of the layers, transfer in shares of the later anchor's refusals."""

    depth_shift: float = setting(0.25, "Change of place that is a move.", gt=0)
    probability: float = setting(0.9, "Of a move, or of its absence, by its lower bound.", gt=0.5, lt=1)
    replaced_below: float = setting(0.5, "c of D(c) for “replaced” and “still controls”.", gt=0)
    kept_above: float = setting(0.8, "c of D(c) for “kept”.", gt=0)
    angle: float = setting(10.0, "Corrected angle of a drift.", gt=0)
    control: float = setting(
        0.5, "Least share of its own refusals that a carrier removes to control them.", ge=0
    )
    control_above_random: float = setting(0.25, "Least lower bound of that beyond random subspaces.", ge=0)
    rank_change: float = setting(0.25, "Least difference in PR of a change of rank.", ge=0)
