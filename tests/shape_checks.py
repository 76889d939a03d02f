"""Run-time checks of tensor shapes, in every module of caryatid that names one; switched on by `conftest.py`."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

SOURCE = Path(__file__).parents[1] / "src"

_F = TypeVar("_F", bound=Callable[..., object])
_beartype = beartype(
    conf=BeartypeConf(is_pep484_tower=True)
)  # an int where a float is expected is fine (PEP 484)


def check(function: _F) -> _F:
    """Check a function whose annotations name a shape; mypy sees to the others, which cost time here."""
    shaped = any("jaxtyping" in repr(hint) for hint in function.__annotations__.values())
    return _beartype(function) if shaped else function


def shaped_modules() -> list[str]:
    """Names of the modules that import jaxtyping."""
    paths = [
        path for path in SOURCE.rglob("*.py") if "from jaxtyping import" in path.read_text(encoding="utf-8")
    ]
    return [".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in paths]


def install() -> None:
    """Decorate the functions and dataclasses of these modules as they are imported."""
    install_import_hook(shaped_modules(), "shape_checks.check")
