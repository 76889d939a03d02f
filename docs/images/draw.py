"""The sketches of docs/geometry.md and concepts.md, of made-up numbers: `python docs/images/draw.py` writes them."""

import math
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from caryatid.report.plot import NO_METADATA, STYLE

BLUE, RED, GREEN, INK, SOFT = "#0072B2", "#D55E00", "#009E73", "#1d2733", "#5a6672"


def sketch(title: str, columns: int, height: float = 2.2) -> tuple[Figure, list[Axes]]:
    """A figure with empty fields beside each other."""
    figure = Figure(figsize=(7.6, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    fields = [figure.add_subplot(1, columns, place + 1) for place in range(columns)]
    return figure, fields


def blank(axes: Axes, title: str, width: float, height: float) -> None:
    """A field to draw arrows in, without axes."""
    axes.set_title(title)
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.axis("off")


def arrow(
    axes: Axes, x: float, y: float, length: float, degrees: float, stroke: str, words: str = ""
) -> None:
    """An arrow from (x, y), counter-clockwise from the right, with words at its tip."""
    angle = math.radians(degrees)
    tip = x + length * math.cos(angle), y + length * math.sin(angle)
    axes.annotate("", tip, (x, y), arrowprops={"arrowstyle": "->", "color": stroke, "lw": 1.6})
    axes.annotate(words, tip, (4, -2), textcoords="offset points", color=stroke, fontsize=7)


def direction() -> Figure:
    """Two clouds and the difference of their means; one direction per category."""
    figure, fields = sketch("A direction is the difference of two means", 2)
    cloud = [(math.cos(2.4 * i), math.sin(2.4 * i), 0.16 * math.sqrt(i + 1)) for i in range(24)]
    for axes, title, places in (
        (fields[0], "overall", [(5.6, 2.9)]),
        (fields[1], "per category", [(4.6, 3.2), (6.6, 2.2)]),
    ):
        blank(axes, title, 8.5, 4.2)
        axes.scatter([1.6 + r * c for c, _, r in cloud], [1.1 + r * s for _, s, r in cloud], 8, BLUE)
        axes.text(0.7, 0.0, "harmless", color=BLUE)
        for index, (x, y) in enumerate(places):
            some = cloud[:: len(places)]
            fill = RED if index == 0 else "#CC79A7"
            axes.scatter(
                [x + 0.8 * r * c for c, _, r in some], [y + 0.8 * r * s for _, s, r in some], 8, fill
            )
            arrow(
                axes, 1.6, 1.1, math.hypot(x - 1.6, y - 1.1), math.degrees(math.atan2(y - 1.1, x - 1.6)), INK
            )
        axes.text(6.2, 0.9, "harmful", color=RED)
    return figure


def depth() -> Figure:
    """Bypass by layer, the band of 5 % of the gap above the best, arg-min and carrier depth."""
    bypass = [3.0, 2.8, 2.7, 1.9, -0.4, -3.4, -3.5, -3.4, -3.6, -3.7, -3.5, -3.6]
    figure, (axes,) = sketch("Carrier depth: the earliest layer within 5 % of the gap of the best", 1, 2.6)
    gap, best = 8.0, min(bypass)
    first = next(layer for layer, value in enumerate(bypass) if value <= best + 0.05 * gap)
    axes.plot(range(len(bypass)), bypass, color=BLUE, marker="o")
    axes.axhspan(best, best + 0.05 * gap, color=RED, alpha=0.15, label="best + 5 % of the gap")
    axes.scatter(
        [first],
        [bypass[first]],
        70,
        facecolors="none",
        edgecolors=RED,
        zorder=3,
        label=f"carrier depth: {first}/12",
    )
    axes.scatter([bypass.index(best)], [best], 50, RED, zorder=3, label=f"arg-min: {bypass.index(best)}/12")
    axes.set(xlabel="layer", ylabel="bypass (nats)", xticks=range(len(bypass)))
    axes.legend(
        title=f"What block {first - 1} writes stays\nin the stream: later layers tie.", alignment="left"
    )
    return figure


def places() -> Figure:
    """P(layer) of the best carrier at two anchors."""
    figure, fields = sketch("Where the best carrier is, over resampled prompts", 2)
    shares = {
        "sure": {8: 0.02, 9: 0.94, 10: 0.04},
        "not sure": {3: 0.21, 4: 0.24, 8: 0.1, 9: 0.27, 10: 0.06},
    }
    for axes, (title, found) in zip(fields, shares.items(), strict=True):
        axes.set_title(f"{title}: no carrier in {1 - sum(found.values()):.0%} of draws")
        axes.bar(range(12), [found.get(layer, 0) for layer in range(12)], color=BLUE)
        axes.set(xlabel="layer", ylabel="P(layer)", ylim=(0, 1), xticks=range(12))
    return figure


def rank() -> Figure:
    """Fans of per-category directions and their effective ranks."""
    figure, fields = sketch("Effective rank of per-category directions", 3)
    fans = (
        ("one direction", (45, 46, 44)),
        ("a little spread", (70, 45, 20)),
        ("two dimensions", (90, 60, 0)),
    )
    for axes, (title, degrees) in zip(fields, fans, strict=True):
        blank(axes, title, 5, 4)
        for one, stroke in zip(degrees, (BLUE, RED, GREEN), strict=True):
            arrow(axes, 0.4, 0.9, 2.9, one, stroke)
        vectors = [(math.cos(math.radians(one)), math.sin(math.radians(one))) for one in degrees]
        xx, yy, xy = (sum(v[a] * v[b] for v in vectors) for a, b in ((0, 0), (1, 1), (0, 1)))
        middle, radius = (xx + yy) / 2, math.hypot((xx - yy) / 2, xy)
        values = [math.sqrt(middle + radius), math.sqrt(max(middle - radius, 0))]
        parts = [value / sum(values) for value in values if value > 0]
        effective = math.exp(-sum(part * math.log(part) for part in parts))
        axes.text(0.4, 0.2, f"effective rank {effective:.2f}")
    return figure


def excess() -> Figure:
    """Half-sample directions at two anchors: noise alone, and a turn beyond it."""
    figure, fields = sketch("Excess angle: what is more than the angle between halves", 2)
    within = 14
    for axes, turn in zip(fields, (0, 30), strict=True):
        blank(axes, "turned by 30°" if turn else "nothing turned", 9, 4.6)
        for name, degrees, length, stroke in (
            ("half 1 at a", 15, 4.4, BLUE),
            ("half 2 at a", 15 + within, 4.4, BLUE),
            ("half 2 at b", 15 + within + turn, 3.6, RED),
        ):
            arrow(axes, 0.4, 0.3, length, degrees, stroke, name)
        for row, each in enumerate((f"across {within + turn}°", f"within {within}°", f"excess {turn}°")):
            axes.text(
                6.7,
                1.4 - 0.5 * row,
                each,
                color=SOFT if row < 2 else INK,
                weight="bold" if row == 2 else None,
            )
    return figure


def cosmic() -> Figure:
    """Mean activations that ablation and addition should swap."""
    figure, fields = sketch("COSMIC: ablation and addition should swap the two means", 2)
    for axes, (title, kept, moved, words) in zip(
        fields,
        (
            ("ablated from harmful prompts", 20.0, 26.0, "cos(harmful without r, harmless)"),
            ("added to harmless prompts", 75.0, 68.0, "cos(harmless + r, harmful)"),
        ),
        strict=True,
    ):
        blank(axes, title, 8.5, 4.2)
        arrow(axes, 0.4, 0.4, 3.5, 20.0, BLUE, "harmless")
        arrow(axes, 0.4, 0.4, 3.5, 75.0, RED, "harmful")
        arrow(axes, 0.4, 0.4, 3.1, moved, INK)
        cosine = math.cos(math.radians(abs(kept - moved)))
        axes.text(3.6, 3.0, f"{words}\nhere {cosine:.2f} of 1", color=SOFT)
    return figure


def labels() -> Figure:
    """Place and direction of the carrier before and after training, and what the old one still removes, by label."""
    figure, fields = sketch(
        "Before (blue) and after (red): place, direction, and what the old direction removes", 5
    )
    cases = (
        ("relocation", 3, 100, 9),
        ("replacement\nin place", 8, 100, 17),
        ("re-siting", 3, 40, 84),
        ("drift only", 8, 68, 78),
        ("no change", 8, 43, 91),
    )
    for axes, (title, after, degrees, removed) in zip(fields, cases, strict=True):
        axes.set_title(title)
        axes.set(xlim=(0, 5), ylim=(-1.5, 12), xticks=[], yticks=[0, 3, 8, 11])
        axes.set_xlabel(f"removes {removed} %", color=INK)
        for x, layer, angle, stroke in ((0.9, 8, 40, BLUE), (3.1, after, degrees, RED)):
            axes.scatter([x], [layer], 24, stroke)
            tip = x + 1.3 * math.cos(math.radians(angle)), layer + 3 * math.sin(math.radians(angle))
            axes.annotate("", tip, (x, layer), arrowprops={"arrowstyle": "->", "color": stroke, "lw": 1.6})
    fields[0].set_ylabel("layer")
    return figure


def main() -> None:
    with mpl.rc_context(STYLE):
        for draw in (direction, depth, places, rank, excess, cosmic, labels):
            path = Path(__file__).parent / f"{draw.__name__}.svg"
            draw().savefig(path, metadata=NO_METADATA["svg"])


if __name__ == "__main__":
    main()
