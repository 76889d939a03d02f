"""Charts as SVG and PDF files, by matplotlib, in one style for colour-blind readers too; the same bytes each time."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from .charts import Chart, Grid, Line, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["svg", "pdf"]
WIDTH = 3.2  # inches of a panel
HEIGHT = 2.4
MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "cross": "P",
    "x": "x",
    "star": "*",
    "triangle-down": "v",
    "line-ew": "_",
}
FRAME, INK, FAINT = "#D55E00", "#1d2733", "#d5dbe1"
STYLE: dict[Any, Any] = {
    "figure.autolayout": False,
    "figure.constrained_layout.use": False,
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#8a949e",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "text.parse_math": False,  # a name may hold dollar signs
    "svg.fonttype": "none",
    "svg.hashsalt": "caryatid",
    "pdf.fonttype": 42,
}
LAYOUT_TABLES = ("BASE", "GDEF", "GPOS", "GSUB", "JSTF", "MATH", "kern")
NO_METADATA = {
    "svg": dict.fromkeys(("Creator", "Date", "Format", "Type")),
    "pdf": dict.fromkeys(("Creator", "Producer", "CreationDate")),
}


def drawn(chart: Chart, *kinds: Kind) -> tuple[bytes, ...]:
    """A chart as the content of files, in the order of `kinds`; the same whichever of them are asked for together."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    contents = []
    with mpl.rc_context(STYLE):
        layout = ConstrainedLayoutEngine()
        figure = Figure(figsize=_size(chart), layout=layout)
        _draw(chart, figure)
        layout.execute(figure)  # once
        figure.set_layout_engine(None)  # not "none", with which every file is drawn twice
        for kind in kinds:
            file = io.BytesIO()
            with _plain_fonts():
                figure.savefig(file, format=kind, metadata=NO_METADATA[kind])
            content = file.getvalue()
            contents.append(content[content.index(b"<svg") :] if kind == "svg" else content)
    return tuple(contents)


@contextmanager
def _plain_fonts() -> Iterator[None]:
    """Inside, fonts are embedded without their tables for laying out text, which is laid out already; to reduce these
    to the characters in use takes longer than all drawing. Where fontTools has no such list they stay."""
    from fontTools.subset import Options

    dropped = getattr(Options, "_drop_tables_default", None)
    if dropped is None:
        yield
        return
    Options._drop_tables_default = [*dropped, *LAYOUT_TABLES]
    try:
        yield
    finally:
        Options._drop_tables_default = dropped


def _size(chart: Chart) -> tuple[float, float]:
    """Inches of the whole figure."""
    columns = min(chart.columns, max(1, len(chart.panels)))
    rows = -(-len(chart.panels) // columns) if chart.panels else 1
    first = chart.panels[0] if chart.panels else None
    if isinstance(first, Grid):
        return 1.6 + max(3.0, 0.62 * len(first.columns)), 1.0 + 0.2 * max(4, len(first.rows))
    wide = WIDTH * 3 if columns == 1 else WIDTH * columns
    return wide, HEIGHT * rows + 0.5


def _draw(chart: Chart, figure: "Figure") -> None:
    figure.suptitle(chart.title, x=0.01, ha="left", fontsize=9.5, fontweight="bold")
    if not chart.panels:
        figure.text(0.5, 0.4, "nothing to show", ha="center", color="#5a6672")
        return
    columns = min(chart.columns, len(chart.panels))
    rows = -(-len(chart.panels) // columns)
    named: dict[str, Any] = {}
    for number, panel in enumerate(chart.panels, 1):
        axes = figure.add_subplot(rows, columns, number)
        axes.set_title(panel.title)
        axes.set_xlabel(panel.x)
        axes.set_ylabel(panel.y)
        if isinstance(panel, Grid):
            _grid(axes, panel)
        else:
            _panel(axes, panel, named)
    if named:
        figure.legend(named.values(), named.keys(), loc="outside lower left", ncols=4)


def _panel(axes: "Axes", panel: Panel, named: dict[str, Any]) -> None:
    """Lines into axes; adds the handles of new names."""
    for name, low, high in panel.bands:
        axes.axhspan(low, high, color="#E69F00", alpha=0.25, label=name)
        named.setdefault(name, axes.patches[-1])
    if panel.level is not None:
        axes.axhline(panel.level, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    for line in panel.lines:
        named.setdefault(line.name, _line(axes, line))
    if panel.y_range is not None:
        low, high = panel.y_range
        axes.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    if panel.x_names:
        axes.set_xticks(range(len(panel.x_names)), panel.x_names, rotation=35, ha="right")
        axes.set_xlim(-0.5, len(panel.x_names) - 0.5)
    elif panel.steps:
        places = sorted({x for line in panel.lines for x in line.x})
        if 0 < len(places) <= 8:
            axes.set_xticks(places, [f"{place:g}" for place in places])
    if not any(math.isfinite(y) for line in panel.lines for y in line.y):
        axes.text(0.5, 0.5, panel.empty, ha="center", va="center", transform=axes.transAxes, color="#5a6672")


def _line(axes: "Axes", line: Line) -> Any:
    shown = [place for place, y in enumerate(line.y) if math.isfinite(y)]
    x, y = [line.x[place] for place in shown], [line.y[place] for place in shown]
    if line.lo:
        for place in shown:
            low, high = line.lo[place], line.hi[place]
            if math.isfinite(low) and math.isfinite(high):
                axes.vlines(line.x[place], low, high, color=line.colour, linewidth=1.1, alpha=0.8)
    style: dict[str, Any] = {"color": line.colour, "marker": MARKERS[line.symbol]}
    if line.mark == "path":
        style = {"color": line.colour, "linewidth": 0.9}
    elif line.mark == "dots":
        style["linestyle"] = "none"
    (handle,) = axes.plot(x, y, **style)
    for place in shown if line.labels else ():
        axes.annotate(
            line.labels[place],
            (line.x[place], line.y[place]),
            (3, 3),
            textcoords="offset points",
            fontsize=6.5,
        )
    return handle


def _grid(axes: "Axes", grid: Grid) -> None:
    values = [[v if math.isfinite(v) else math.nan for v in row] for row in grid.values]
    axes.grid(False)
    axes.set_xticks(
        range(len(grid.columns)),
        grid.columns,
        rotation=35 if max(map(len, grid.columns), default=0) > 5 else 0,
    )
    axes.set_yticks(range(len(grid.rows)), grid.rows)
    if not values:
        return
    axes.imshow(values, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
    if len(grid.columns) <= 12:
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if math.isfinite(value):
                    ink = "#ffffff" if value > 0.6 else INK
                    axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=ink)
    _marks(axes, grid)


def _marks(axes: "Axes", grid: Grid) -> None:
    """Frames of admissible cells, a disc on the carrier, a ring at the carrier depth."""
    from matplotlib.patches import Rectangle

    for y, x in grid.framed:
        axes.add_patch(Rectangle((x - 0.47, y - 0.45), 0.94, 0.9, fill=False, edgecolor=FRAME, linewidth=1.0))
    for cells, words, fill, shift in (
        (grid.marked, "carrier", FRAME, -0.36),
        (grid.ringed, "carrier depth", "none", 0.36),
    ):
        if cells:
            axes.scatter(
                [x + shift for _, x in cells], [y for y, _ in cells], 16, label=words,
                facecolors=fill, edgecolors=FRAME, zorder=3,
            )  # fmt: skip
    if grid.framed:
        axes.scatter([], [], 30, marker="s", facecolors="none", edgecolors=FRAME, label="admissible")
    if grid.framed or grid.marked or grid.ringed:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=7)
