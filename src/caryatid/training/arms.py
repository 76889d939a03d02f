"""The arms of protocol §3: which loss terms, and where their prompts come from.

To add an arm, write its `Arm` (and the function of its loss terms, where none of `terms.py` fits) and register it with
one line; a package outside caryatid can do the same.
"""

from dataclasses import dataclass
from typing import Literal

from ..registry import Registry
from .terms import LossTerms, away_and_toward, toward_only

Suffixes = Literal["none", "static", "dynamic"]


@dataclass(frozen=True)
class Arm:
    """One way of training. All arms share the chat term, its batches, optimizer, schedule, LoRA shape and seed.

    Attributes:
        terms: loss terms on harmful cases drawn from the pool; None: chat alone, and nothing is drawn.
        suffixes: none sends behaviours as they are; static keeps cases made once at step 0; dynamic refreshes them.
    """

    name: str
    terms: LossTerms | None = None
    suffixes: Suffixes = "none"


ARMS: Registry[str, Arm] = Registry("arm")


def register_arm(arm: Arm) -> Arm:
    """Make an arm known by its name; see `Registry.register`."""
    return ARMS.register(arm.name, arm)


def arm_named(name: str) -> Arm:
    """A registered arm; see `Registry.named`."""
    return ARMS.named(name)


SFT = register_arm(Arm("sft"))
register_arm(Arm("refusal_sft", toward_only))
R2D2 = register_arm(Arm("r2d2", away_and_toward, "dynamic"))
register_arm(Arm("r2d2_static", away_and_toward, "static"))
