"""caryatid's own attacks, one registration each, and the lookup by name of these and of others' (`base`)."""

from typing import Any

from . import base
from .gcg.settings import GcgSettings


def _gcg(*block: Any) -> list[base.AttackResult]:
    from .gcg.search import gcg_search  # brings torch, which a configuration does without

    return gcg_search(*block)


base.register_attack(base.Attack("gcg", GcgSettings, _gcg))


def attack_named(name: str) -> base.Attack:
    """A registered attack.

    Raises:
        UsageError: no attack has that name.
    """
    return base.ATTACKS.named(name)
