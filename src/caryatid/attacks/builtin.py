"""caryatid's own attacks, one line of registration each."""

from caryatid.attacks.base import Attack, register_attack
from caryatid.attacks.gcg.search import gcg_search
from caryatid.attacks.gcg.settings import GcgSettings

GCG = register_attack(Attack("gcg", GcgSettings, gcg_search))
