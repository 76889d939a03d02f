"""Which candidates are admissible, and by what the best of them is picked: thresholds with a name (protocol §5)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from ..settings import Settings, setting

Selector = Literal["bypass", "cosmic"]
SELECTORS: tuple[Selector, ...] = ("bypass", "cosmic")


def depth_cut(fraction: float, n_layers: int) -> int:
    """⌊fraction · L⌋, of the fraction as it is written in decimals."""
    return math.floor(Fraction(repr(float(fraction))) * n_layers)


@dataclass(frozen=True)
class Profile(Settings):
    """Thresholds that make a candidate admissible; NaN is always inadmissible.

    Attributes:
        selector: `bypass` picks the lowest bypass. `cosmic` picks the highest sum of COSMIC's cosines; of the
            thresholds it asks for `kl_max` and `depth_fraction` alone (arXiv 2506.00085).
    """

    name: str = setting("own", "Its name.")
    kl_max: float = setting(0.1, "Largest KL(base ‖ ablated) at the last position.", gt=0)
    induce_min: float | None = setting(None, "Least induce score in nats (published: 0).")
    effects_min: float | None = setting(None, "Least gap-normalised bypass and induce effects.")
    depth_fraction: float = setting(0.8, "Only layers l < ⌊depth_fraction · L⌋.", gt=0, le=1)
    selector: Selector = setting("bypass", "What picks among admissible candidates.")

    def depth_cut(self, n_layers: int) -> int:
        """⌊depth_fraction · L⌋."""
        return depth_cut(self.depth_fraction, n_layers)


PUBLISHED = Profile("published", kl_max=0.1, induce_min=0.0)
CALIBRATED = Profile("calibrated", kl_max=0.35, effects_min=0.5)
COSMIC = Profile("cosmic", kl_max=0.1, selector="cosmic")
PROFILES: Mapping[str, Profile] = {profile.name: profile for profile in (PUBLISHED, CALIBRATED)}
