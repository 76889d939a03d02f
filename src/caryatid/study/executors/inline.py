"""In this process, one stage after the other; several such processes may share a run directory."""

from collections.abc import Mapping

from ...errors import UsageError
from ..plan import Plan
from ..runner import execute
from ..work import Session
from .base import known_options


class Inline:
    """The executor that needs nothing."""

    def __init__(self, workers: int | None, options: Mapping[str, str]) -> None:
        known_options(options, (), "inline")
        if workers not in (None, 1):
            raise UsageError(
                f"{workers} workers in one process",
                where="--workers",
                remedy="Start the same command several times, or use --executor ray.",
            )

    def execute(self, session: Session, plan: Plan) -> list[str]:
        """Run what is not done."""
        return execute(session, plan)
