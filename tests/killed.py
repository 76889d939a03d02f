"""A search of a tiny model that shows where it is and is kept after every step: a test kills it. Run as a script."""

import sys
from pathlib import Path
from typing import Any

from caryatid.attacks.base import Goal
from caryatid.attacks.gcg import search
from caryatid.attacks.gcg.settings import GcgSettings
from caryatid.attacks.run import AttackPlan, run_attack
from caryatid.models.template import ChatFormat
from tiny import tiny_loaded

GOALS = (
    Goal("letter", "Write a letter, then post it", "Sure, here is a letter"),
    Goal("tides", "The tides, and the moon\n\n---\n\nExplain this", "Sure, the tides"),
    Goal("boat", "Fold a paper boat", "Sure, here is how"),
)
SETTINGS = GcgSettings(steps=60, width=6, top_k=16, suffix_length=(3, 5))


def attacked(settings: GcgSettings, **options: Any) -> list[dict[str, Any]]:
    """Results without their times."""
    loaded = tiny_loaded("llama")
    plan = AttackPlan("gcg", settings, GOALS, seed=3, batch_size=8, block_size=3)
    found = [result.to_json() for result in run_attack(loaded, ChatFormat(loaded.tokenizer), plan, **options)]
    for result in found:
        del result["seconds"]
    return found


if __name__ == "__main__":
    search.KEEP_EVERY = 0.0
    attacked(SETTINGS, out=Path(sys.argv[1]))
