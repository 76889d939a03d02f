"""What stages took: time, devices and memory."""

from collections.abc import Iterator

from ...report.tables import Column
from ..run import Run
from ..table import Row, Shown, Table, register_table


def _rows(run: Run) -> Iterator[Row]:
    """One row a stage that is here, as its manifest has it; stages of several seeds that are one stand once."""
    seen: set[str] = set()
    for entry in run.plan:
        folder = entry.folder(run.directory)
        if entry.key in seen or not folder.done():
            continue
        seen.add(entry.key)
        made, seconds = folder.manifest(), folder.seconds()
        memory, devices = made.get("memory"), made.get("devices")
        known = memory if isinstance(memory, dict) else {}
        yield {
            "stage": entry.stage.kind,
            "place": entry.stage.place.name if entry.stage.place else "",
            "device": str(made.get("device", "")),
            "seconds": seconds,
            "device_seconds": seconds * devices if seconds is not None and isinstance(devices, int) else None,
            "memory": known.get("process"),
            "device_memory": known.get("device"),
        }


TABLE = register_table(
    Table(
        "costs",
        "What each stage took in the process that finished it; what a killed one took before is not counted.",
        (
            Column("stage", str, "kind of stage"),
            Column("place", str, "where it works: seed, arm, anchor or pair; empty: the whole study"),
            Column("device", str, "where models ran"),
            Column("seconds", float, "time", "s"),
            Column("device_seconds", float, "time × devices that it held", "s"),
            Column("memory", int, "peak resident memory of the process", "bytes"),
            Column("device_memory", int, "peak memory of the device that torch took", "bytes"),
        ),
        _rows,
        Shown("more", "What stages took"),
    )
)
