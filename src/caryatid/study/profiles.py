"""The admissibility profiles of a study, with its settings."""

from collections.abc import Sequence
from dataclasses import replace

from ..config import StudyConfig
from ..data.prompts import Prompt, PromptSet
from ..geometry.carriers import PROFILES, Profile
from ..geometry.profiles import SELECTORS

UNLABELLED = "unlabelled"


def profile_of(config: StudyConfig, name: str) -> Profile:
    """A profile by its name, with its settings and the study's selector."""
    found: Profile = getattr(config.geometry, name)
    return replace(found, selector=config.geometry.selector)


def profiles_of(config: StudyConfig, first: str) -> list[Profile]:
    """Every profile with its settings, the one that is used first."""
    return [profile_of(config, name) for name in dict.fromkeys((first, *PROFILES))]


def alternatives(config: StudyConfig, used: str) -> dict[str, Profile]:
    """Under which carriers are chosen: every profile by its name, and the one used with each selector that the study
    does not use, by the selector's name."""
    own = profile_of(config, used)
    named = {name: profile_of(config, name) for name in sorted(PROFILES)}
    others: dict[str, Profile] = {
        name: replace(own, selector=name) for name in SELECTORS if name != own.selector
    }
    return {**named, **others}


def labels_of(prompts: PromptSet) -> list[str]:
    """The categories of extraction prompts."""
    return [row.category or UNLABELLED for row in prompts]


def is_question(prompt: Prompt) -> bool:
    """Whether a prompt asks rather than instructs."""
    return prompt.text.rstrip().endswith("?")


def categories_note(left_out: Sequence[str], categories: int) -> str:
    """What to know about a rank: categories without sampling noise to estimate, or a single one."""
    if left_out:
        plural = "y" if len(left_out) == 1 else "ies"
        return f"{len(left_out)} categor{plural} with a single prompt left out"
    return "a single category: 1 whatever the model" if categories == 1 else ""
