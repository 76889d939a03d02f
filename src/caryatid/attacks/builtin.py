"""caryatid's own attacks, one line of registration each."""

from .base import Attack, register_attack
from .gcg.search import gcg_search
from .gcg.settings import GcgSettings

GCG = register_attack(Attack("gcg", GcgSettings, gcg_search))
