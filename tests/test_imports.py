"""Imports flow downstream only, pure rooms stay pure, and importing the package costs no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "caryatid"
# A room may import itself and anything above it.
ORDER = (
    "errors",
    "settings",
    "progress",
    "paths",
    "locks",
    "stats",
    "settings",
    "artifacts",
    "results",
    "data",
    "models",
    "attacks",
    "training",
    "anchors",
    "behaviour",
    "geometry",
    "geometry_files",
    "causal",
    "single",
    "config",
    "report",
    "study",
    "api",
    "cli",
)
PURE = ("geometry", "stats", "training/losses")
IMPURE = {
    "transformers",
    "peft",
    "pathlib",
    "os",
    "rich",
    "datasets",
    "caryatid.artifacts",
    "caryatid.models",
}

# Imports inside the package are relative. These are still to be converted; nothing is added here.
ABSOLUTE_YET = (
    "attacks/",
    "behaviour/",
    "causal/transfer.py",
    "geometry/",
    "stats.py",
    *(
        f"models/{name}.py"
        for name in (
            "adapters",
            "batch",
            "check",
            "convert",
            "generate",
            "identity",
            "layout",
            "load",
            "resolve",
            "template",
        )
    ),
)


def _modules() -> list[Path]:
    return [path for path in SOURCE.rglob("*.py") if path.name != "__main__.py" and path.parent != SOURCE] + [
        path for path in SOURCE.glob("*.py") if path.stem not in ("__init__", "__main__")
    ]


def _room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Absolute names of what a module imports."""
    package = ["caryatid", *path.relative_to(SOURCE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_flow_downstream(path: Path) -> None:
    room = _room(path)
    assert room in ORDER, f"{room} has no place in the order of rooms"
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "caryatid" and len(parts) > 1 and parts[1] in ORDER:
            assert ORDER.index(parts[1]) <= ORDER.index(room), f"{room} imports {name}"


def test_imports_inside_the_package_are_relative() -> None:
    for path in SOURCE.rglob("*.py"):
        if str(path.relative_to(SOURCE)).startswith(ABSOLUTE_YET):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else names
            assert not [name for name in names if name.split(".")[0] == "caryatid"], f"{path}:{node.lineno}"


@pytest.mark.parametrize("room", PURE)
def test_pure_rooms_do_no_io(room: str) -> None:
    paths = (
        [SOURCE / f"{room}.py"] if (SOURCE / f"{room}.py").exists() else sorted((SOURCE / room).glob("*.py"))
    )
    assert paths
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert not {
            n for n in _imports(path) if any(n == bad or n.startswith(f"{bad}.") for bad in IMPURE)
        }, path
        calls = [
            n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        ]
        assert not {call.func.id for call in calls} & {"print", "open"}, path  # type: ignore[attr-defined]


def test_help_and_package_import_without_torch() -> None:
    code = "import sys, caryatid.cli; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
