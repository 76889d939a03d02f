"""The arms of protocol §3: which loss terms, and where their prompts come from.

To add an arm, write its `Arm` (and the function of its loss terms, where none of `terms.py` fits) and register it with
one line; a package outside caryatid can do the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..registry import Registry
from .cat import cat_terms
from .circuit_breakers import circuit_breaker_terms
from .dpo import dpo_terms
from .lat import lat_terms
from .settings import TrainingSettings
from .terms import LossTerms, away_and_toward, toward_only

Suffixes = Literal["none", "static", "dynamic"]


@dataclass(frozen=True)
class Arm:
    """One way of training. All arms share the chat term, its batches, optimizer, schedule, LoRA shape and seed.

    Attributes:
        terms: loss terms on harmful cases drawn from the pool; None: chat alone, and nothing is drawn.
        suffixes: none sends behaviours as they are; static keeps cases made once at step 0; dynamic refreshes them.
        part: the part of `TrainingSettings` beside `r2d2` that its terms read; other arms do not depend on it.
        recomputes: its terms hook no blocks, so that gradient checkpointing may compute these again if memory runs out.
        passes: forward and backward passes over the cases that come before those of the terms, for forecasts.
        about: what it is to a reader of the report who has not read the protocol, a sentence without its full stop.
    """

    name: str
    terms: LossTerms | None = None
    suffixes: Suffixes = "none"
    part: str | None = None
    recomputes: bool = False
    passes: Callable[[TrainingSettings], float] = lambda settings: 0.0
    about: str = ""


ARMS: Registry[str, Arm] = Registry("arm")


def register_arm(arm: Arm) -> Arm:
    """Make an arm known by its name; see `Registry.register`."""
    return ARMS.register(arm.name, arm)


def arm_named(name: str) -> Arm:
    """A registered arm; see `Registry.named`."""
    return ARMS.named(name)


SFT = register_arm(Arm("sft", recomputes=True, about="trained on chat alone"))
register_arm(
    Arm(
        "refusal_sft",
        toward_only,
        recomputes=True,
        about="taught to refuse harmful requests, never attacked",
    )
)
R2D2 = register_arm(
    Arm(
        "r2d2",
        away_and_toward,
        "dynamic",
        recomputes=True,
        about="taught to refuse harmful requests under attack suffixes that are renewed as it learns",
    )
)
register_arm(
    Arm(
        "r2d2_static",
        away_and_toward,
        "static",
        recomputes=True,
        about="taught to refuse harmful requests under attack suffixes made once, before training",
    )
)
register_arm(
    Arm(
        "cat",
        cat_terms,
        part="cat",
        recomputes=True,
        passes=lambda settings: settings.cat.steps / 2,
        about="taught to refuse harmful requests whose embeddings are perturbed against it",
    )
)
register_arm(
    Arm(
        "lat",
        lat_terms,
        part="lat",
        passes=lambda settings: settings.lat.steps,
        about="taught to refuse harmful requests whose hidden states are perturbed against it",
    )
)
register_arm(
    Arm(
        "circuit_breakers",
        circuit_breaker_terms,
        part="circuit_breakers",
        about="trained to have other hidden states on harmful requests than before",
    )
)
register_arm(
    Arm(
        "dpo",
        dpo_terms,
        part="dpo",
        recomputes=True,
        about="trained to prefer a refusal to an answer of harmful requests",
    )
)
