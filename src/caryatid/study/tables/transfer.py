"""How many of one anchor's refusals another anchor's carrier removes."""

import itertools

from ...causal.transfer import transfer, transfer_ratio
from ...config.thresholds import Thresholds
from ...report.tables import Column
from ..run import Run
from ..series import transfer_sources
from ..stages.carrier import ChosenCarrier
from ..stages.transfer import RefusedUnder, Transfer
from ..table import NOISE, PAIR, QUANTITY, Row, Shown, Table, register_table


def _rows(run: Run) -> list[Row]:
    rows: list[Row] = []
    for target, found in run.each(Transfer):
        own = run.of(ChosenCarrier, target).carrier.site.admissible
        for source, rank in itertools.product(transfer_sources(run.config, target), found.ranks):
            if not found.measured(source, rank):
                continue
            under = found.under(source, target, rank)
            common: Row = {
                "seed": target.seed,
                "arm": target.arm,
                "from": source.step,
                "to": target.step,
                "from_arm": source.arm,
                "rank": rank,
                "carrier_admissible": run.of(ChosenCarrier, source).carrier.site.admissible,
                "own_admissible": own,
                "n": under.counts.refusals,
                "subspaces": under.counts.subspaces,
            }
            quantities = _quantities(under, run.config.verdict)
            rows += [{**common, "quantity": name, **value} for name, value in quantities.items()]
    return rows


def _quantities(under: RefusedUnder, thresholds: Thresholds) -> dict[str, Row]:
    """Rates and contrasts with two-sided 95 % bounds, each one-sided of 97.5 %."""
    prompts, both = {"noise": "evaluation prompts"}, {"noise": "evaluation prompts and random subspaces"}
    rate, counts = transfer(under.plain, under.old), under.counts
    ratio = transfer_ratio(under.plain, under.old, under.own)
    return {
        "transfer": {"value": rate.value, "lo": rate.lo, "hi": rate.hi, **prompts},
        "transfer_random": {**counts.random._asdict(), **both},
        "transfer_above_random": {**counts.above_random("old")._asdict(), **both},
        "contrast_replaced": {**counts.contrast(thresholds.replaced_below)._asdict(), **both},
        "contrast_kept": {**counts.contrast(thresholds.kept_above)._asdict(), **both},
        "ratio": {**ratio.ratio._asdict(), "reason": ratio.reason or "", **prompts},
    }


TABLE = register_table(
    Table(
        "transfer",
        "T[a, b]: share of b's refusals that a's carrier removes, beyond random ones; D(c) = T*[a, b] − c·T*[b, b].",
        (
            *PAIR,
            *QUANTITY,
            Column("rank", int, "of the subspaces ablated"),
            Column("subspaces", int, "random ones that were ablated beside it"),
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
