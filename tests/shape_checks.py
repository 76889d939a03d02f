"""Run-time checks of tensor shapes, in every module of caryatid that names one; switched on by `conftest.py`.

jaxtyping's import hook decorates every function and dataclass of a module. Here only those are wrapped whose
annotations name a shape, in one check of arguments and result: mypy sees to the others, and each wrapper costs time in
every call.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import TypeCheckError, install_import_hook, jaxtyped

SOURCE = Path(__file__).parents[1] / "src"

_T = TypeVar("_T", bound=Callable[..., Any] | type)


class WrongType(TypeCheckError):
    """Says what jaxtyping's own errors say first."""

    def __init__(self, message: str) -> None:
        super().__init__(f"Type-check error: {message}")


_beartype = beartype(
    conf=BeartypeConf(is_pep484_tower=True, violation_type=WrongType)
)  # an int where a float is expected is fine (PEP 484)


def check(target: _T) -> _T:
    """Check the calls of a function, or of a dataclass's constructor, whose annotations name a shape."""
    if not isinstance(target, type):
        return _checked(target)
    if dataclasses.is_dataclass(target) and "__init__" in vars(target):
        target.__init__ = _checked(target.__init__)
    return target


def _checked(function: Any) -> Any:
    if not any("jaxtyping" in repr(hint) for hint in function.__annotations__.values()):
        return function
    if inspect.isgeneratorfunction(function):
        return jaxtyped(function, typechecker=_beartype)  # checked when called, not when first resumed
    checked = _beartype(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with jaxtyped("context"):  # in which dimensions of one name are equal
            return checked(*args, **kwargs)

    return call


def shaped_modules() -> list[str]:
    """Names of the modules that import jaxtyping."""
    paths = [
        path for path in SOURCE.rglob("*.py") if "from jaxtyping import" in path.read_text(encoding="utf-8")
    ]
    return [".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in paths]


def install() -> None:
    """Decorate the functions and dataclasses of these modules as they are imported."""
    install_import_hook(shaped_modules(), "shape_checks.check")
    jaxtyping.jaxtyped = lambda *, typechecker: typechecker  # what the hook decorates with
