"""Entries by name that another package can add to: attacks, arms, judges, interventions, stages and tables."""

from collections.abc import Collection
from typing import TypeVar

from .errors import UsageError

K = TypeVar("K")
V = TypeVar("V")


class Registry(dict[K, V]):
    """Entries by name, in order of registration.

    Args:
        what: what an entry is, as messages call it. reserved: names that no entry can have.
    """

    def __init__(self, what: str, reserved: Collection[K] = ()) -> None:
        super().__init__()
        self.what, self.reserved = what, reserved

    def register(self, name: K, entry: V) -> V:
        """Make an entry known by a name; the same one again is harmless.

        Raises:
            ValueError: the name is reserved, or another entry has it.
        """
        if name in self.reserved or self.setdefault(name, entry) != entry:
            raise ValueError(f"another {self.what} named {name!r} is registered already")
        return entry

    def named(self, name: K) -> V:
        """The entry of a name.

        Raises:
            UsageError: there is none.
        """
        if name not in self:
            known = ", ".join(map(str, self))
            raise UsageError(f"no {self.what} is named {name!r}", where=self.what, remedy=f"Use {known}.")
        return self[name]
