"""The anchors of a study, the places where something is measured, and which anchors are compared."""

import itertools
from dataclasses import dataclass

from ..config import StudyConfig

BASE = "base"  # the arm that step 0, which all arms share, has in every table


@dataclass(frozen=True, order=True)
class SeedRef:
    """One seed of a study."""

    seed: int

    @property
    def name(self) -> str:
        """`seed0`."""
        return f"seed{self.seed}"


@dataclass(frozen=True, order=True)
class ArmRef:
    """One arm's training of one seed."""

    seed: int
    arm: str

    @property
    def name(self) -> str:
        """`arm/seed0`."""
        return f"{self.arm}/seed{self.seed}"


@dataclass(frozen=True, order=True)
class AnchorRef:
    """An anchor: arm, step and seed. Step 0 is shared by all arms as `base`."""

    seed: int
    arm: str
    step: int

    @property
    def name(self) -> str:
        """`arm@step/seed0`."""
        return f"{self.label}/seed{self.seed}"

    @property
    def label(self) -> str:
        """`arm@step`: unique within a seed."""
        return f"{self.arm}@{self.step}"

    @property
    def base(self) -> "AnchorRef":
        """Step 0 of the same seed."""
        return AnchorRef(self.seed, BASE, 0)

    @property
    def columns(self) -> dict[str, int | str]:
        """The columns by which tables name an anchor."""
        return {"seed": self.seed, "arm": self.arm, "step": self.step}


@dataclass(frozen=True, order=True)
class PairRef:
    """Two anchors of one seed that are compared, the earlier one first."""

    a: AnchorRef
    b: AnchorRef

    @property
    def seed(self) -> int:
        """The seed of both."""
        return self.b.seed

    @property
    def name(self) -> str:
        """`arm@step-arm@step/seed0`."""
        return f"{self.a.label}-{self.b.label}/seed{self.seed}"

    @property
    def columns(self) -> dict[str, int | str]:
        """The columns by which tables name a pair."""
        return {"seed": self.seed, "arm": self.b.arm, "from": self.a.step, "to": self.b.step}


Place = SeedRef | ArmRef | AnchorRef | PairRef | None
"""Where a stage works; None: the whole study."""


def anchors_of(config: StudyConfig, seed: int) -> list[AnchorRef]:
    """Step 0 first, then each arm's anchors in order."""
    base = [AnchorRef(seed, BASE, 0)]
    if config.observed:
        return base + [AnchorRef(seed, anchor.arm, anchor.step) for anchor in config.observed_anchors]
    return base + [AnchorRef(seed, arm, step) for arm in config.arms for step in config.steps[1:]]


def all_anchors(config: StudyConfig) -> list[AnchorRef]:
    """Every anchor of every seed."""
    return [anchor for seed in config.seeds for anchor in anchors_of(config, seed)]


def series_of(config: StudyConfig, seed: int) -> dict[str, list[AnchorRef]]:
    """Each arm's trajectory, starting at the shared step 0."""
    anchors = anchors_of(config, seed)
    arms = list(dict.fromkeys(anchor.arm for anchor in anchors[1:]))
    return {arm: [anchors[0], *(anchor for anchor in anchors if anchor.arm == arm)] for arm in arms}


def verdict_pairs(config: StudyConfig, seed: int) -> list[PairRef]:
    """Consecutive anchors and first-to-last of each arm (protocol §7)."""
    pairs: list[PairRef] = []
    for series in series_of(config, seed).values():
        pairs += [PairRef(a, b) for a, b in itertools.pairwise(series)]
        if len(series) > 2:
            pairs.append(PairRef(series[0], series[-1]))
    return pairs


def compared_pairs(config: StudyConfig, seed: int) -> list[PairRef]:
    """Pairs that have a verdict, then every further anchor against step 0."""
    base, *later = anchors_of(config, seed)
    return list(dict.fromkeys([*verdict_pairs(config, seed), *(PairRef(base, ref) for ref in later)]))


def transfer_sources(config: StudyConfig, target: AnchorRef) -> list[AnchorRef]:
    """Whose carriers are ablated at an anchor: its own, step 0's, that before it, or with `all` every anchor's."""
    anchors = anchors_of(config, target.seed)
    if config.causal.transfer_pairs == "all":
        return anchors
    earlier = {pair.a for pair in verdict_pairs(config, target.seed) if pair.b == target}
    return sorted(earlier | {target, anchors[0]}, key=anchors.index)
