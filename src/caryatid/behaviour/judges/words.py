"""Word lists of the offline judges (`words.json`); an entry may be a regular expression."""

from functools import cache

from ...paths import package_json


@cache
def words(name: str) -> tuple[str, ...]:
    """The entries of a list, in order."""
    return tuple(package_json("behaviour/judges/words.json")[name])


def any_of(name: str) -> str:
    """A regular expression for one of the entries of a list, in order."""
    return "(?:" + "|".join(words(name)) + ")"
