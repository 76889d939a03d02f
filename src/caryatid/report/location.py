"""The page, tables and carrier file of `caryatid locate`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..artifacts import write_bytes, write_json
from ..single.located import Located
from .figures import candidate_cell, value_of
from .page import rendered
from .svg import MUTED, Drawing
from .tables import CANDIDATE, ESTIMATE, Column, write_table

EFFECTS = (
    Column("intervention", str, "none, ablate or add"),
    Column("control", str, "none, the carrier, or the number of a random subspace"),
    Column("read_out", str, "refused; utility_pass; removed, of the refusals; induced, of harmless prompts"),
    *ESTIMATE,
)


def write_location(folder: Path, found: Located) -> Path:
    """Write `location.json`, `tables/`, `figures/map.svg`, `report/index.html`, and `carrier.safetensors` if there is a
    carrier; returns the page's path."""
    write_json(folder / "location.json", found.to_json())
    write_table(folder / "tables", "candidates", CANDIDATE, found.candidates)
    write_table(folder / "tables", "effects", EFFECTS, found.effects)
    carrier = folder / "carrier.safetensors"
    if found.carrier is not None:
        found.save_carrier(carrier)
    else:
        carrier.unlink(missing_ok=True)
    drawn = map_figure(found.candidates) if found.candidates else ""
    if drawn:
        write_bytes(folder / "figures" / "map.svg", drawn.encode())
    html = rendered(
        "location.html",
        facts=found.to_json(),
        remedy=found.remedy,
        notes=found.notes,
        map=drawn,
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


def map_figure(candidates: Sequence[Mapping[str, Any]]) -> str:
    """Bypass effect by layer and prompt position; a frame marks admissible cells, a disc the carrier."""
    positions = sorted({int(row["position"]) for row in candidates})
    layers = sorted({int(row["layer"]) for row in candidates})
    width, height, left, top = 64, 20, 64, 54
    drawing = Drawing(
        max(left + width * len(positions) + 20, 560),
        top + height * len(layers) + 20,
        "Where refusal is carried",
    )
    drawing.text(6, 16, "Share of the refusal gap that ablating the direction removes", bold=True, size=13)
    drawing.text(6, 34, "layer, by prompt position (−1: the last token)", size=11, fill=MUTED)
    for x, position in enumerate(positions):
        drawing.text(left + width * (x + 0.5), top - 5, str(position), anchor="middle", size=11)
    for y, layer in enumerate(reversed(layers)):
        drawing.text(left - 8, top + height * y + 14, str(layer), anchor="end", size=11)
        for x, position in enumerate(positions):
            here = [row for row in candidates if (row["layer"], row["position"]) == (layer, position)]
            if here:
                row = min(here, key=lambda one: value_of(one, "bypass"))
                candidate_cell(drawing, left + width * x, top + height * y, width, height, row)
    return str(drawing.svg())
