"""The sketches of docs/geometry.md, from made-up numbers: `python docs/images/draw.py` writes them beside itself."""

import math
from pathlib import Path

from caryatid.report.svg import FAINT, INK, Drawing, Point, Series, panel

BLUE, RED, SOFT = "#0072B2", "#D55E00", "#5a6672"


def arrow(
    drawing: Drawing, x: float, y: float, length: float, degrees: float, stroke: str, width: float = 2
) -> tuple[float, float]:
    """An arrow from (x, y), counter-clockwise from the right; its tip."""
    angle = math.radians(degrees)
    tip = x + length * math.cos(angle), y - length * math.sin(angle)
    drawing.line(x, y, *tip, stroke, width)
    for side in (150, -150):
        barb = angle + math.radians(side)
        drawing.line(*tip, tip[0] + 8 * math.cos(barb), tip[1] - 8 * math.sin(barb), stroke, width)
    return tip


def direction() -> Drawing:
    """Two clouds and the difference of their means; one direction per category."""
    drawing = Drawing(760, 210, "A direction is the difference of two means")
    cloud = [(math.cos(2.4 * i), math.sin(2.4 * i), 5.2 * math.sqrt(i + 1)) for i in range(24)]
    for left, title, split in ((0, "overall", False), (380, "per category", True)):
        drawing.text(left + 6, 18, title, bold=True, size=13)
        for c, s, r in cloud:
            drawing.dot(left + 70 + r * c, 145 + r * s, BLUE, 3)
        places = [(left + 230, 75)] if not split else [(left + 190, 60), (left + 275, 90)]
        for index, (x, y) in enumerate(places):
            for c, s, r in cloud[:: len(places)]:
                drawing.dot(x + r * c * 0.8, y + r * s * 0.8, RED if index == 0 else "#CC79A7", 3)
            dx, dy = x - (left + 70), 145 - y
            arrow(drawing, left + 70, 145, math.hypot(dx, dy), math.degrees(math.atan2(dy, dx)), INK)
        drawing.text(left + 40, 200, "harmless", size=12, fill=BLUE)
        drawing.text(left + 200, 140, "harmful", size=12, fill=RED)
    return drawing


def depth() -> Drawing:
    """Bypass by layer, the band of 5 % of the gap above the best, arg-min and carrier depth."""
    bypass = [3.0, 2.8, 2.7, 1.9, -0.4, -3.4, -3.5, -3.4, -3.6, -3.7, -3.5, -3.6]
    drawing = Drawing(760, 250, "Carrier depth: the earliest layer within 5 % of the gap of the best")
    box = (0.0, 0.0, 520.0, 250.0)
    layers = list(range(len(bypass)))
    panel(
        drawing, box, [Series("bypass", BLUE, [Point(layer, value) for layer, value in enumerate(bypass)])],
        title="bypass: mean refusal score under ablation (nats)", steps=layers, bounds=(-4.5, 3.5), axis="layer",
    )  # fmt: skip

    def at(layer: float, value: float) -> tuple[float, float]:
        return 52 + layer * (508 - 40 - 24) / (len(bypass) - 1), 216 - (value + 4.5) / 8 * (216 - 26)

    gap, best = 8.0, min(bypass)
    for value, words in ((best, "best"), (best + 0.05 * gap, "best + 5 % of the gap")):
        _, y = at(0, value)
        drawing.line(40, y, 508, y, RED, 1)
        drawing.text(514, y + (4 if value == best else 0), words, size=11, fill=RED)
    first = next(layer for layer in layers if bypass[layer] <= best + 0.05 * gap)
    drawing.dot(*at(first, bypass[first]), RED, 7, hollow=True)
    drawing.dot(*at(bypass.index(best), best), RED, 6)
    for y, words, hollow in (
        (50, f"carrier depth: {first}/12", True),
        (74, f"arg-min: {bypass.index(best)}/12", False),
    ):
        drawing.dot(540, y, RED, 6, hollow=hollow)
        drawing.text(554, y + 4, words)
    drawing.text(534, 104, "What block 4 writes stays in", size=11, fill=SOFT)
    drawing.text(534, 119, "the stream: later layers tie.", size=11, fill=SOFT)
    return drawing


def places() -> Drawing:
    """P(layer) of the best carrier at two anchors."""
    drawing = Drawing(760, 190, "Where the best carrier is, over resampled prompts")
    shares = {
        "sure": {8: 0.02, 9: 0.94, 10: 0.04},
        "not sure": {3: 0.21, 4: 0.24, 8: 0.1, 9: 0.27, 10: 0.06},
    }
    for panel_index, (title, found) in enumerate(shares.items()):
        left = 380 * panel_index + 20
        missing = 1 - sum(found.values())
        drawing.text(left, 18, f"{title}: P(layer), no carrier in {missing:.0%} of draws", bold=True, size=13)
        for layer in range(12):
            x = left + 28 * layer
            height = 120 * found.get(layer, 0)
            drawing.rect(x, 155 - height, 20, height, BLUE, tip=f"layer {layer}: {found.get(layer, 0):.2f}")
            drawing.text(x + 10, 172, str(layer), anchor="middle", size=11)
        drawing.line(left, 155, left + 28 * 12, 155, INK)
    return drawing


def rank() -> Drawing:
    """Fans of per-category directions and their effective ranks."""
    drawing = Drawing(760, 190, "Effective rank of per-category directions")
    fans = (
        ("one direction", (45, 46, 44)),
        ("a little spread", (70, 45, 20)),
        ("two dimensions", (90, 60, 0)),
    )
    for index, (title, degrees) in enumerate(fans):
        left = 250 * index + 20
        for one in degrees:
            arrow(drawing, left + 20, 150, 105, one, (BLUE, RED, "#009E73")[degrees.index(one)])
        vectors = [(math.cos(math.radians(one)), math.sin(math.radians(one))) for one in degrees]
        xx, yy, xy = (sum(v[a] * v[b] for v in vectors) for a, b in ((0, 0), (1, 1), (0, 1)))
        middle, radius = (xx + yy) / 2, math.hypot((xx - yy) / 2, xy)
        values = [math.sqrt(middle + radius), math.sqrt(max(middle - radius, 0))]
        parts = [value / sum(values) for value in values if value > 0]
        effective = math.exp(-sum(part * math.log(part) for part in parts))
        drawing.text(left, 18, title, bold=True, size=13)
        drawing.text(left + 20, 175, f"effective rank {effective:.2f}", size=12)
    return drawing


def excess() -> Drawing:
    """Half-sample directions at two anchors: noise alone, and a turn beyond it."""
    drawing = Drawing(760, 210, "Excess angle: what is more than the angle between halves")
    within = 14
    for index, turn in enumerate((0, 30)):
        left = 380 * index + 20
        drawing.text(left, 18, "turned by 30°" if turn else "nothing turned", bold=True, size=13)
        ends = (
            ("half 1 at a", 15, 170, BLUE),
            ("half 2 at a", 15 + within, 170, BLUE),
            ("half 2 at b", 15 + within + turn, 140, RED),
        )
        for name, degrees, length, stroke in ends:
            x, y = arrow(drawing, left + 20, 190, length, degrees, stroke)
            drawing.text(x + 8, y + (14 if stroke == RED and not turn else 4), name, size=12, fill=stroke)
        words = (f"across {within + turn}°", f"within {within}°", f"excess {turn}°")
        for row, each in enumerate(words):
            drawing.text(left + 275, 150 + 18 * row, each, fill=SOFT if row < 2 else INK, bold=row == 2)
    return drawing


def cosmic() -> Drawing:
    """Mean activations that ablation and addition should swap."""
    drawing = Drawing(760, 200, "COSMIC: ablation and addition should swap the two means")
    for index, (title, kept, moved, words) in enumerate(
        (
            ("ablated from harmful prompts", 20.0, 26.0, "cos(harmful without r, harmless)"),
            ("added to harmless prompts", 75.0, 68.0, "cos(harmless + r, harmful)"),
        )
    ):
        left = 380 * index + 20
        drawing.text(left, 18, title, bold=True, size=13)
        for name, degrees, stroke in (("harmless", 20.0, BLUE), ("harmful", 75.0, RED)):
            tip = arrow(drawing, left + 20, 180, 140, degrees, stroke)
            drawing.text(tip[0] + 6, tip[1] + 2, name, size=12, fill=stroke)
        arrow(drawing, left + 20, 180, 125, moved, INK)
        drawing.text(left + 170, 70, words, size=12)
        cosine = math.cos(math.radians(abs(kept - moved)))
        drawing.text(left + 170, 90, f"here {cosine:.2f} of 1", size=12, fill=SOFT)
        drawing.line(left + 10, 180, left + 170, 180, FAINT)
    return drawing


def main() -> None:
    for sketch in (direction, depth, places, rank, excess, cosmic):
        (Path(__file__).parent / f"{sketch.__name__}.svg").write_text(sketch().svg())


if __name__ == "__main__":
    main()
