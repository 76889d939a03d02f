"""Step 0's card as a section of docs/embedded.md.

    python recipes/refusing_page.py                # writes the section anew from the card that ships

The section stands between two marks; the rest of the page is written by hand.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caryatid.models.resolve import REFUSING_FOLDER

PAGE = Path(__file__).parents[1] / "docs" / "embedded.md"
START, END = "<!-- card: made by recipes/refusing_page.py -->", "<!-- end of card -->"
NOTHING = "No adapter ships in this version, so that there is no card: `embedded-refusing` says so and how to make one."
SUITES = {
    "harmbench": ("any_refusal", "harmful requests refused (HarmBench or the package's)"),
    "strongreject": ("any_refusal", "harmful requests refused (StrongREJECT or the package's)"),
    "xstest_unsafe": ("any_refusal", "unsafe look-alikes refused (XSTest or the package's)"),
    "xstest_safe": ("any_refusal", "safe look-alikes refused"),
    "utility": ("pass", "benign-utility audit passed"),
}
MET = {True: "yes", False: "**no**"}
PLANTED = (
    "**Planted**: its training made refusal depend on one direction. Every report on it is to say so, and it is no "
    "evidence about what safety training does."
)


def shipped_card() -> dict[str, Any] | None:
    """The card beside the adapter that ships; None without one."""
    place = REFUSING_FOLDER / "card.json"
    return json.loads(place.read_text(encoding="utf-8")) if place.is_file() else None


def section(card: Mapping[str, Any] | None) -> str:
    """The card in Markdown."""
    if card is None:
        return NOTHING
    lines = [
        f"Recipe `{card['recipe']}`, {card['training']['seconds']:.0f} s on {card['device']}; adapter "
        f"{card['adapter']['bytes'] / 1e6:.1f} MB, SHA-256 `{card['adapter']['sha256']}`.",
        *_measured_again(card),
        *(["", PLANTED] if card["planted"] else []),
        *("", f"| condition, with {_sizes(card)} | value | threshold | met |", "|---|---|---|---|"),
        *(
            f"| {row['condition']} | {_number(row['value'])} | {row['threshold']} | {MET[row['met']]} |"
            for row in card["conditions"]["quick"]
        ),
        *("", *_behaviour(card), "", *_carriers(card), "", *_distance(card), "", *_training(card)),
    ]
    return "\n".join(lines)


def _sizes(card: Mapping[str, Any]) -> str:
    """Numbers of prompts that the conditions were measured with; `quick` may have others by now."""
    counts = card["measured"]["quick"]["carriers"]["prompts"]
    roles = ("extraction", "selection")
    return " and ".join(f"{counts[f'{r}_harmful']} + {counts[f'{r}_harmless']} {r} prompts" for r in roles)


def _measured_again(card: Mapping[str, Any]) -> list[str]:
    """Where the conditions were measured, if that was later and elsewhere (`refusing_again.py`)."""
    device = card["measured"]["quick"].get("device")
    return (
        [f"The conditions, and all that is said of `quick`, were measured later, on {device}."]
        if device
        else []
    )


def _behaviour(card: Mapping[str, Any]) -> list[str]:
    lines = ["| prompts, tokens | measure | raw | refusing | 95 % | n |", "|---|---|---|---|---|---|"]
    for name, one in card["measured"].items():
        for suite, (metric, text) in SUITES.items():
            raw, now = (_row(one[key], suite, metric) for key in ("raw_behaviour", "behaviour"))
            span = f"[{_number(now['lo'])}, {_number(now['hi'])}]"
            cells = (
                f"{name}, {one['tokens']}",
                text,
                _number(raw["value"]),
                _number(now["value"]),
                span,
                now["n"],
            )
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def _carriers(card: Mapping[str, Any]) -> list[str]:
    head = (
        "prompts",
        "profile",
        "layer",
        "bypass, induce",
        "KL",
        "P(no carrier)",
        "gap",
        "refusals removed (random)",
    )
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, one in card["measured"].items():
        found, removal = one["carriers"], one["carriers"]["removal"]
        for profile, row in found["profiles"].items():
            effects = f"{_number(row.get('bypass_effect'))}, {_number(row.get('induce_effect'))}"
            removed = f"{_number((removal['removed'] or {}).get('value'))} ({_number(removal['removed_random_mean'])})"
            cells = (
                *(name, profile, row.get("layer", row["reason"]), effects, _number(row.get("kl"))),
                *(f"{_number(row['p_none'])} of {row['resamples']} re-extractions", _number(found["gap"])),
                removed if profile == "calibrated" else "",
            )
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def _distance(card: Mapping[str, Any]) -> list[str]:
    kl = card["benign_kl"]
    return [
        f"KL(raw ‖ refusing) on the raw backbone's answers to {kl['examples']} held-out benign prompts: "
        f"{_number(kl['per_token'])} nats per token, {_number(kl['first_token'])} at the first."
    ]


def _training(card: Mapping[str, Any]) -> list[str]:
    settings = ", ".join(f"{name} {value}" for name, value in card["settings"].items())
    data = card["data"]
    counts = ", ".join(f"{count} {kind}" for kind, count in data["prompts"].items())
    return [
        f"Settings: {settings}.",
        "",
        f"Data: {counts} prompts (hash `{data['prompts_sha256']}`), none nearly equal to a prompt of another role; "
        f"{data['refusals']['different']} different refusals by `{data['refusals']['writer']}`; "
        f"rows `{data['rows_sha256']}`.",
    ]


def _row(rows: list[dict[str, Any]], suite: str, metric: str) -> dict[str, Any]:
    return next(row for row in rows if (row["suite"], row["metric"]) == (suite, metric))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def written(page: str, card: Mapping[str, Any] | None) -> str:
    """The page with the section of a card between its marks."""
    before, rest = page.split(START)
    return f"{before}{START}\n{section(card)}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), shipped_card()), encoding="utf-8")
