"""What a report leaves beside its page for papers: figures as SVG and PDF, and the main tables for TeX."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..artifacts import write_bytes
from ..texts import visible
from .captions import Figure, profile_of
from .charts import Row, Tables
from .plot import drawn

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "→": r"$\rightarrow$", "−": "$-$", "≥": r"$\geq$", "≤": r"$\leq$", "°": r"$^\circ$", "Δ": r"$\Delta$", "–": "--",
}  # fmt: skip


def write_figures(folder: Path, figures: Iterable[Figure]) -> int:
    """Write `figures/*.svg` and `.pdf` into a run directory; returns the number of figures."""
    count = 0
    for figure in figures:
        count += 1
        name = re.sub(r"[^\w.-]+", "_", figure.name)  # arms of an observed series may be called anything
        svg, pdf = drawn(figure.chart, "svg", "pdf")
        write_bytes(folder / "figures" / f"{name}.svg", svg)
        write_bytes(folder / "figures" / f"{name}.pdf", pdf)
    return count


def write_tex(folder: Path, tables: Tables) -> None:
    """Write `tables/*.tex` into a run directory."""
    for name, text in tex_tables(tables).items():
        write_bytes(folder / "tables" / f"{name}.tex", text.encode())


def tex_tables(tables: Tables) -> dict[str, str]:
    """The tables of a paper by name, each a `tabular` with booktabs rules that `\\input` takes as it is."""
    profile = profile_of(tables)
    places = [
        row
        for row in tables.get("carrier_summary", ())
        if row["quantity"] == "depth" and row["profile"] == profile
    ]
    transfer = [
        row for row in tables["transfer"] if row["quantity"] == "transfer" and row.get("rank") in (1, None)
    ]
    behaviour = [row for row in tables["behaviour"] if not row.get("group")]
    estimate = ("value", "lo", "hi", "n")
    return {
        "behaviour": tabular(
            ("seed", "arm", "step", "suite", "attack", "metric", *estimate, "judge"), behaviour
        ),
        "carrier_summary": tabular(
            ("seed", "arm", "step", "argmin_layer", "depth_layer", "value", "lo", "hi", "noise", "reason"),
            places,
        ),
        "transfer": tabular(("seed", "from_arm", "from", "arm", "to", *estimate), transfer),
        "training": tabular(
            (
                "seed",
                "arm",
                "step",
                "loss_sft",
                "loss_away",
                "loss_toward",
                "benign_kl",
                "delta_weight",
                "seconds",
            ),
            tables["training"],
        ),
        "verdict": tabular(
            ("seed", "arm", "from", "to", "label", "rank_change", "profile", "judge"), tables["verdict"]
        ),
    }


def tabular(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """Rows as a TeX `tabular`; every cell is text, whatever it holds."""
    numbers = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in columns]
    lines = [
        "% Needs \\usepackage{booktabs}.",
        f"\\begin{{tabular}}{{{''.join('r' if number else 'l' for number in numbers)}}}",
        "\\toprule",
        f"{' & '.join(map(tex, columns))} \\\\",
        "\\midrule",
        *(f"{' & '.join(_tex_cell(row.get(name)) for name in columns)} \\\\" for row in rows),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _tex_cell(value: Any) -> str:
    if value is None:
        return "--"
    return f"{value:.3g}" if isinstance(value, float) else tex(str(value))


def tex(text: str) -> str:
    """A text of which TeX takes nothing for a command: special characters are escaped, controls spelt out, line ends
    become spaces."""
    return "".join(_SPECIAL.get(character, character) for character in " ".join(visible(text).split()))
