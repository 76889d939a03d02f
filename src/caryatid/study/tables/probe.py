"""Where harm and refusal can be read at every anchor."""

from ...report.tables import Column
from ..run import Run
from ..stages.probe import Probes
from ..table import ANCHOR, QUANTITY, Row, Shown, Table, register_table


def _rows(run: Run) -> list[Row]:
    return [{**ref.columns, **row} for ref, found in run.each(Probes) for row in found.rows]


TABLE = register_table(
    Table(
        "probe",
        "How well logistic probes read harm (harmful against harmless prompts) and refusal (refused against answered "
        "among the harmful) at the last prompt token, cross-validated over prompts; where it is causal, `causal` says.",
        (
            *ANCHOR,
            Column("read", str, "`harm` or `refusal`"),
            *QUANTITY,
            Column("layer", int, "block at whose input it is read"),
            Column("n", int, "prompts of the kind that is read"),
            Column("n_against", int, "prompts of the other kind"),
            Column("note", str, "what to know about the value"),
        ),
        _rows,
        Shown("geometry", "Where harm and refusal can be read"),
    )
)
