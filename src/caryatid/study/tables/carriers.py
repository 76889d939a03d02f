"""Every scored candidate at every anchor."""

from ...geometry.carrier_rows import candidate_table
from ...report.tables import CANDIDATE
from ..profiles import profiles_of
from ..run import Run
from ..stages.candidates import ScoredCandidates
from ..stages.carrier import ChosenCarrier
from ..table import ANCHOR, Row, Shown, Table, register_table

HIDDEN = frozenset({"kl_answer", "cosmic_ablated", "cosmic_added"})  # on the page


def _rows(run: Run) -> list[Row]:
    rows: list[Row] = []
    for ref, found in run.each(ScoredCandidates):
        carriers = run.of(ChosenCarrier, ref)
        for profile in profiles_of(run.config, carriers.profile):
            table = candidate_table(found.scores, profile, carriers.chosen[profile.name].choice)
            rows += [{**ref.columns, **row} for row in table]
    return rows


TABLE = register_table(
    Table(
        "carriers",
        "Every scored candidate direction under every profile, admissible or not.",
        (*ANCHOR, *CANDIDATE),
        _rows,
        Shown(
            "carriers",
            "Every scored candidate",
            tuple(column.name for column in (*ANCHOR, *CANDIDATE) if column.name not in HIDDEN),
        ),
    )
)
