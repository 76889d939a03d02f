"""Arms at matched robustness: train and ask all, then measure the geometry where direct compliance is nearest .35.

    python benchmarks/four_arms.py run recipes/four_arms.yaml --out RUN [--set KEY=VALUE …]   # several may share RUN
    python benchmarks/four_arms.py show RUN            # or a folder of docs/results/
    python benchmarks/four_arms.py tables              # names, for `publish.py add RUN NAME … --tables`

`run` leaves the study unfinished: of the stages that measure refusal's carrier it runs those at step 0 and at each
arm's matched anchor, with what they need, and none of the interventions. `caryatid study run` would finish it.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from arm_claims import claims
from caryatid.cli.console import TerminalProgress, announce
from caryatid.config import StudyConfig, load_config
from caryatid.progress import NO_PROGRESS, Progress
from caryatid.report.tables import arrow_table, read_tables
from caryatid.study.plan import Plan
from caryatid.study.run import Run
from caryatid.study.runner import execute, opened
from caryatid.study.series import BASE, AnchorRef, PairRef
from caryatid.study.stages.comparison import Comparison
from caryatid.study.stages.cone import Cone
from caryatid.study.stages.harm import Harm
from caryatid.study.stages.rank import Rank
from caryatid.study.stages.selection import Selection
from caryatid.study.stages.transfer import Transfer
from caryatid.study.stages.uncertainty import Uncertainty
from caryatid.study.stages.verdict import Verdicts
from caryatid.study.table import all_tables
from compared_arms import behaviour_table, geometry_table, matched_anchors
from publish import finished_part, write_named

TABLES = (
    "behaviour", "attacks", "training", "carrier_summary", "rank", "cone", "drift", "transfer", "verdict", "costs",
)  # fmt: skip
ARMS = ("cat", "lat", "circuit_breakers", "dpo", "r2d2")
MEASURES = (Uncertainty, Rank, Cone, Transfer, Comparison, Verdicts)


def measured_part(plan: Plan, chosen: Sequence[AnchorRef]) -> Plan:
    """The part of a plan that measures these anchors, and each against step 0, with what that needs."""
    places = {*chosen, *(PairRef(ref.base, ref) for ref in chosen if ref.arm != BASE)}
    wanted = [entry for entry in plan if isinstance(entry.stage, MEASURES) and entry.stage.place in places]
    ids = {entry.id for entry in wanted}.union(*(entry.upstream for entry in wanted))
    return Plan(plan.study, tuple(entry for entry in plan if entry.id in ids))


def matched_refs(run: Run) -> list[AnchorRef]:
    """Step 0 and every arm's matched anchor, from the answers that are there."""
    (behaviour,) = (table for table in all_tables() if table.name == "behaviour")
    rows = arrow_table("behaviour", behaviour.columns, list(behaviour.rows(finished_part(run)))).to_pylist()
    (seed,) = run.config.seeds
    chosen = matched_anchors({"behaviour": rows})
    return [AnchorRef(seed, BASE, 0), *(AnchorRef(seed, arm, step) for arm, step in chosen.items())]


def run_arms(
    config: StudyConfig,
    out: Path,
    progress: Progress = NO_PROGRESS,
    tell: Callable[[str], None] = lambda _line: None,
) -> list[AnchorRef]:
    """Train and ask every anchor, then measure the matched ones; other processes may do the same in `out`."""
    with opened(config, out, progress, tell) as session:
        execute(session, session.plan.upto(Harm, Selection))
        run = Run(session.plan, session.run)
        chosen = matched_refs(run)
        tell(f"matched: {', '.join(ref.label for ref in chosen)}")
        execute(session, measured_part(session.plan, chosen))
        with run.directory.locked(wait=True):
            write_named(finished_part(run), run.path, TABLES)
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("config", type=Path)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    shown = commands.add_parser("show")
    shown.add_argument("folder", type=Path)
    commands.add_parser("tables")
    options = parser.parse_args()
    if options.command == "tables":
        print(*TABLES)
    elif options.command == "run":
        with TerminalProgress() as progress:
            run_arms(
                load_config(file=options.config, overrides=options.overrides), options.out, progress, announce
            )
    else:
        tables = read_tables(options.folder)
        print(behaviour_table(tables), geometry_table(tables), *claims(tables, ARMS), sep="\n\n")


if __name__ == "__main__":
    main()
