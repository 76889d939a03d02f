"""Run-time checks of tensor shapes, in every module of caryatid that names one; switched on by `conftest.py`.

As jaxtyping's own import hook, with two differences that leave out no check and save much time: only functions and
dataclasses are wrapped whose annotations name a shape (mypy sees to the others), in one check of arguments and result;
and what such a module imports is taken from its compiled file as ever.
"""

import ast
import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any, TypeVar

from beartype import BeartypeConf, beartype
from jaxtyping import TypeCheckError, jaxtyped

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


class _Decorated(ast.NodeTransformer):
    """Adds `check` below the decorators of every function, and above those of every class."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.decorator_list.append(self._check(node))
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.decorator_list.insert(0, self._check(node))
        return self.generic_visit(node)

    def _check(self, node: ast.stmt) -> ast.expr:
        found = ast.parse(f"__import__({__name__!r}).check", mode="eval").body
        for part in ast.walk(found):
            ast.copy_location(part, node)
        return found


class _Loader(SourceFileLoader):
    """Compiles a module with its functions and classes decorated, and leaves no compiled file behind."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree = _Decorated().visit(ast.parse(self.get_data(path), path))
        return compile(tree, path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    """Finds the modules that name shapes."""

    def __init__(self) -> None:
        self.modules = frozenset(shaped_modules())

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in self.modules else None
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin)
        return spec


def install() -> None:
    """Decorate the functions and dataclasses of these modules as they are imported."""
    sys.meta_path.insert(0, _Finder())
