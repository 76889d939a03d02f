"""Prompts that gave way to another role."""

from ...report.tables import Column
from ..run import Run
from ..stages.chat import Chat
from ..stages.prompts import Prompts
from ..table import SEED, Row, Table, register_table


def _rows(run: Run) -> list[Row]:
    dropped = (*run.of(Prompts).dropped, *run.of(Chat).dropped)
    return [{"seed": run.config.seeds[0], **row.to_json()} for row in dropped]


TABLE = register_table(
    Table(
        "dropped",
        "Rows that were also, or nearly, prompts of a role of higher precedence, and were left out.",
        (
            SEED,
            Column("prompt_id", str, "the row left out"),
            Column("set_name", str, "its set"),
            Column("role", str, "its role"),
            Column("kept_id", str, "the prompt it gave way to"),
            Column("kept_set", str, "that prompt's set"),
            Column("kept_role", str, "that prompt's role"),
            Column("similarity", float, "of the two texts; 1: the same"),
        ),
        _rows,
    )
)
