"""The page, tables and carrier file of `caryatid locate`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..artifacts import write_bytes, write_json
from ..single.located import Located
from .charts import Chart
from .figures import candidate_grid
from .page import rendered
from .plot import drawn
from .tables import CANDIDATE, ESTIMATE, Column, write_table

EFFECTS = (
    Column("intervention", str, "none, ablate or add"),
    Column("control", str, "none, the carrier, or the number of a random subspace"),
    Column("read_out", str, "refused; utility_pass; removed, of the refusals; induced, of harmless prompts"),
    *ESTIMATE,
)


def write_location(folder: Path, found: Located) -> Path:
    """Write `location.json`, `tables/`, `figures/map.svg` and `.pdf`, `report/index.html`, and `carrier.safetensors` if
    there is a carrier; returns the page's path."""
    write_json(folder / "location.json", found.to_json())
    write_table(folder / "tables", "candidates", CANDIDATE, found.candidates)
    write_table(folder / "tables", "effects", EFFECTS, found.effects)
    carrier = folder / "carrier.safetensors"
    if found.carrier is not None:
        found.save_carrier(carrier)
    else:
        carrier.unlink(missing_ok=True)
    drawing = b""
    if found.candidates:
        drawing, paper = drawn(map_chart(found.candidates), "svg", "pdf")
        write_bytes(folder / "figures" / "map.svg", drawing)
        write_bytes(folder / "figures" / "map.pdf", paper)
    html = rendered(
        "location.html",
        facts=found.to_json(),
        remedy=found.remedy,
        notes=found.notes,
        map=Markup(drawing.decode()),
        headline=headline(found),
        effects=found.effects,
        places=sorted(found.places.items()),
        columns=[column.name for column in CANDIDATE],
        candidates=found.candidates,
    )
    path = folder / "report" / "index.html"
    write_bytes(path, html.encode())
    return path


def headline(found: Located) -> str:
    """What was found, in a sentence or two."""
    facts = found.facts
    carrier = facts["carrier"]
    if carrier is None:
        return f"No carrier: {facts['reason']}. {found.remedy}"
    ablation, addition = facts["ablation"], facts["addition"]
    return (
        f"Refusal is carried at the input of layer {carrier['layer']} of {facts['layers']}, position "
        f"{carrier['position']} (depth {carrier['depth']:.2f}, 95 % interval {carrier['depth_lo']:.2f} to "
        f"{carrier['depth_hi']:.2f}). Ablating it removes {_share(ablation['removed'])} of the refusals, a random "
        f"subspace at most {_share(ablation['removed_random'])}; adding it makes {_share(addition['induced'])} of "
        f"harmless prompts refused, a random direction at most {_share(addition['induced_random'])}."
    )


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.0%}"


def map_chart(candidates: Sequence[Mapping[str, Any]]) -> Chart:
    """Bypass effect by layer and prompt position; a frame marks admissible cells, a disc the carrier."""
    positions = sorted({int(row["position"]) for row in candidates})
    grid = candidate_grid(candidates, "position", [str(position) for position in positions])
    grid = replace(grid, title="By prompt position (−1: the last token)", x="position")
    return Chart("Share of the refusal gap that ablating the direction removes", (grid,), columns=1)
