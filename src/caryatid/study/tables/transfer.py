"""How many of one anchor's refusals another anchor's carrier removes."""

from ...causal.transfer import transfer, transfer_ratio
from ...report.tables import Column
from ..run import Run
from ..series import transfer_sources
from ..stages.carrier import ChosenCarrier
from ..stages.transfer import Transfer
from ..table import NOISE, PAIR, QUANTITY, Row, Shown, Table, register_table


def _rows(run: Run) -> list[Row]:
    rows: list[Row] = []
    for target, found in run.each(Transfer):
        own = run.of(ChosenCarrier, target).carrier.site.admissible
        for source in transfer_sources(run.config, target):
            under = found.under(source, target)
            common: Row = {
                "seed": target.seed,
                "arm": target.arm,
                "from": source.step,
                "to": target.step,
                "from_arm": source.arm,
                "carrier_admissible": run.of(ChosenCarrier, source).carrier.site.admissible,
                "own_admissible": own,
                "n": int(under.plain.sum()),
                "noise": "evaluation prompts",
            }
            rate = transfer(under.plain, under.under_a)
            rows.append({**common, "quantity": "transfer", **rate._asdict()})
            if source != target:
                ratio = transfer_ratio(under.plain, under.under_a, under.under_b)
                reason = {"reason": ratio.reason or ""}
                rows.append({**common, "quantity": "ratio", **ratio.ratio._asdict(), **reason})
    return rows


TABLE = register_table(
    Table(
        "transfer",
        "T[a, b]: share of b's refusals that a's carrier removes, and its ratio to what b's own removes.",
        (
            *PAIR,
            *QUANTITY,
            Column("from_arm", str, "arm of the anchor whose carrier was ablated"),
            Column("carrier_admissible", bool, "it is a profile's carrier, not a stand-in"),
            Column("own_admissible", bool, "the target's own is"),
            Column("n", int, "refusals of the target anchor"),
            NOISE,
            Column("reason", str, "why a ratio is undefined"),
        ),
        _rows,
        Shown("transfer", "Transfer and ratios"),
    )
)
