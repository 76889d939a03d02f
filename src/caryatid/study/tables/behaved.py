"""How much the direction hangs on prompts that the model does not treat as the method expects."""

from ...report.tables import Column
from ..run import Run
from ..stages.behaved import BehavedPrompts
from ..table import ANCHOR, SITE, Row, Shown, Table, register_table


def _rows(run: Run) -> list[Row]:
    return [{**ref.columns, **row} for ref, found in run.each(BehavedPrompts) for row in found.rows]


TABLE = register_table(
    Table(
        "behaved",
        "The direction of harmful prompts that are refused against harmless ones that are answered (`filtered`), and "
        "of refused against answered harmful ones (`refused_minus_answered`), beside r of all prompts.",
        (
            *ANCHOR,
            Column("direction", str, "filtered or refused_minus_answered"),
            *SITE,
            Column("n", int, "harmful extraction prompts that are refused"),
            Column("n_against", int, "prompts of the other group"),
            Column("cosine", float, "with r at the carrier's site, as measured"),
            Column("norm_ratio", float, "its length over that of r"),
            Column("angle", float, "to r, corrected for the noise that both share", "degrees"),
            Column("angle_lo", float, "lower end of its 95 % interval", "degrees"),
            Column("angle_hi", float, "upper end of its 95 % interval", "degrees"),
            Column("note", str, "why a value is undefined"),
            Column("best_layer", int, "where this direction finds its best carrier, of the likeliest places"),
            Column("best_position", int, "prompt position of that carrier"),
            Column("depth", float, "carrier depth with this direction, share of the layers"),
            Column("place_note", str, "why it finds none"),
        ),
        _rows,
        Shown(
            "geometry",
            "Prompts that do not behave",
            note="A study keeps one set of prompts for all anchors. Where refusal is neither rare nor general, r mixes "
            "harmfulness and refusal; these two directions tell them apart.",
        ),
    )
)
