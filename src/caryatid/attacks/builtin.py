"""caryatid's own attacks, one registration each, and the lookup by name of these and of others' (`base`)."""

from importlib import import_module
from typing import Any

from . import base, settings
from .gcg.settings import GcgSettings


def _in(module: str, function: str) -> base.Search:
    """A search of a module that brings torch, which a configuration does without: imported when it is called."""

    def search(*block: Any) -> list[base.AttackResult]:
        found: list[base.AttackResult] = getattr(import_module(module, __package__), function)(*block)
        return found

    return search


base.register_attack(base.Attack("gcg", GcgSettings, _in(".gcg.search", "gcg_search"), together=True))
base.register_attack(base.Attack("autodan", settings.AutoDanSettings, _in(".autodan", "autodan")))
base.register_attack(base.Attack("prefill", settings.PrefillSettings, _in(".prefill", "prefill")))
base.register_attack(base.Attack("templates", settings.TemplateSettings, _in(".templates", "templates")))
base.register_attack(
    base.Attack(
        "random_search",
        settings.RandomSearchSettings,
        _in(".random_search", "random_search"),
        together=True,
    )
)
base.register_attack(
    base.Attack("embedding", settings.EmbeddingSettings, _in(".embedding", "embedding_search"), together=True)
)
base.register_attack(base.Attack("best_of_n", settings.BestOfNSettings, _in(".best_of_n", "best_of_n")))


def attack_named(name: str) -> base.Attack:
    """A registered attack.

    Raises:
        UsageError: no attack has that name.
    """
    return base.ATTACKS.named(name)
