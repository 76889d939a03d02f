"""Steps of one long command: each is computed once and kept in a folder, so that a killed run goes on."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .. import __version__
from ..artifacts import RunDirectory
from ..results import load_result, save_result

R = TypeVar("R")


@dataclass(frozen=True)
class Steps:
    """Finished steps under the hash of what they depend on.

    Attributes:
        run: where they are kept; None: nowhere. facts: what all of them depend on, plain JSON values.
    """

    run: RunDirectory | None
    facts: Mapping[str, Any]

    def of(self, name: str, kind: type[R], compute: Callable[[], R], **more: Any) -> R:
        """The result of a step: kept, or computed now and kept.

        Args:
            kind: dataclass of the result (see `results.save_result`). more: what else it depends on.
        """
        if self.run is None:
            return compute()
        folder = self.run.stage(name, {**self.facts, **more})
        if folder.state() == "done":
            return load_result(kind, folder)
        folder.begin()
        result = compute()
        save_result(result, folder)
        folder.finish({})
        return result


@contextmanager
def kept_steps(out: Path | None, command: str, facts: Mapping[str, Any]) -> Iterator[Steps]:
    """Steps that are kept in `out`, which is held meanwhile; None: not kept.

    Raises:
        UsageError: the folder cannot be written, holds something else, or another process uses it.
    """
    if out is None:
        yield Steps(None, facts)
        return
    run = RunDirectory.create(out)
    with run.locked():
        run.write_manifest({"caryatid": __version__, "command": command})
        yield Steps(run, facts)
