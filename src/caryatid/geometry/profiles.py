"""Which candidates are admissible, and by what the best of them is picked: thresholds with a name (protocol §5)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Selector = Literal["bypass", "cosmic"]
SELECTORS: tuple[Selector, ...] = ("bypass", "cosmic")


@dataclass(frozen=True)
class Profile:
    """Thresholds that make a candidate admissible; NaN is always inadmissible.

    Attributes:
        kl_max: largest KL(base ‖ ablated) at the last position.
        induce_min: least induce score in nats, or None.
        effects_min: least gap-normalised bypass effect and induce effect, or None.
        depth_fraction: only layers l < ⌊depth_fraction · L⌋.
        selector: `bypass` picks the lowest bypass. `cosmic` picks the highest sum of COSMIC's cosines; of the
            thresholds it asks for `kl_max` and `depth_fraction` alone (arXiv 2506.00085).
    """

    name: str
    kl_max: float
    induce_min: float | None = None
    effects_min: float | None = None
    depth_fraction: float = 0.8
    selector: Selector = "bypass"

    def depth_cut(self, n_layers: int) -> int:
        """⌊depth_fraction · L⌋, of the fraction as it is written in decimals."""
        return math.floor(Fraction(repr(float(self.depth_fraction))) * n_layers)


PUBLISHED = Profile("published", kl_max=0.1, induce_min=0.0)
CALIBRATED = Profile("calibrated", kl_max=0.35, effects_min=0.5)
COSMIC = Profile("cosmic", kl_max=0.1, selector="cosmic")
PROFILES: Mapping[str, Profile] = {profile.name: profile for profile in (PUBLISHED, CALIBRATED)}
