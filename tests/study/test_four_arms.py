"""Arms at matched robustness: what is chosen, shown and said follows from the tables, and what is missing says why."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from small import forget, small_config

import compared_arms
import publish
from arm_claims import claims
from caryatid.config import load_config
from caryatid.report.tables import read_tables
from caryatid.study.run import open_run
from compared_arms import Matched, Row, Tables
from four_arms import ARMS, MEASURES, TABLES, run_arms
from shares import bounds, share

ROOT = Path(__file__).parents[2]
PUBLISHED = publish.Published("qwen-0.5b-seed0")


def anchor(arm: str, step: int, direct: float, useful: float = 0.9) -> list[Row]:
    """Behaviour of a made-up anchor."""
    wide = {"n": 100, "lo": direct - 0.05, "hi": direct + 0.05}
    asked = {"suite": "harmbench", "metric": "compliance", "attack": "direct", "value": direct, **wide}
    passed = {"suite": "utility", "metric": "pass", "attack": "none", "value": useful, "lo": 0, "hi": 1}
    return [{"arm": arm, "step": step, **one} for one in (asked, passed)]


def geometry(arm: str, layer: int, angle: float, cone: tuple[int, int, int], kept: bool) -> dict[str, Row]:
    """A made-up geometry at step 25 of an arm, by table; `kept`: step 0's carrier still controls."""
    where, pair = {"arm": arm, "step": 25}, {"arm": arm, "from": 0, "to": 25}
    contrast = (0.2, 0.1, 0.3) if kept else (-0.2, -0.3, -0.1)
    own = {"arm": arm, "from": 25, "to": 25, "from_arm": arm, "rank": 1}
    values = ("value", "lo", "hi")
    return {
        "carrier_summary": {
            **where, "profile": "calibrated", "quantity": "depth", "noise": compared_arms.BOTH, "argmin_layer": layer,
            "position": -1, "reason": "", "p_none": 0.0, "value": layer / 24, "lo": layer / 24, "hi": layer / 24,
        },
        "drift": {**pair, "site": "first anchor", "quantity": "corrected_angle"}
        | dict(zip(values, (angle, angle - 1, angle + 1), strict=True)),
        "cone": {**where, "quantity": "dimension"} | dict(zip(values, cone, strict=True)),
        "transfer": {**own, "quantity": "transfer", "value": 0.9, "lo": 0.8, "hi": 1.0},
        "above": {**own, "quantity": "transfer_above_random", "value": 0.8, "lo": 0.7, "hi": 0.9},
        "contrast": {**pair, "from_arm": "base", "rank": 1, "quantity": "contrast_replaced"}
        | dict(zip(values, contrast, strict=True)),
    }  # fmt: skip


def made_up(*arms: dict[str, Row]) -> Tables:
    """Tables of step 0, SFT and two arms, the first of which closes, with their geometry."""
    behaviour = [
        *anchor("base", 0, 0.7),
        *(row for step in (10, 25) for row in anchor("sft", step, 0.7)),
        *anchor("cat", 10, 0.5),
        *anchor("cat", 25, 0.33),
        *anchor("dpo", 10, 0.65),
        *anchor("dpo", 25, 0.39, useful=0.5),
    ]
    tables: dict[str, list[Row]] = {"behaviour": behaviour}
    for arm in arms:
        for name, row in arm.items():
            tables.setdefault(name if name in TABLES else "transfer", []).append(row)
    return tables


ALIKE = geometry("cat", 17, 30, (1, 1, 2), True), geometry("dpo", 19, 5, (2, 1, 3), True)
WIDE = {
    "carrier_summary": ALIKE[0]["carrier_summary"] | {"lo": 0.5}
}  # from there on to the other arm's it is .29
OPEN = ALIKE[0] | WIDE, ALIKE[1]
APART = geometry("cat", 8, 30, (1, 1, 1), False), geometry("dpo", 19, 5, (3, 2, 3), True)


def test_the_anchor_nearest_the_target_is_chosen_and_the_earlier_of_two() -> None:
    assert compared_arms.matched_anchors(made_up()) == {"sft": 10, "cat": 25, "dpo": 25}
    assert [one.matched for one in compared_arms.compared(made_up())] == [False, False, True, True]


def test_an_arm_closes_only_where_it_stays_useful() -> None:
    closed, broken = (compared_arms.closing(made_up(), arm) for arm in ("cat", "dpo"))
    assert closed is not None
    assert (closed.step, closed.closes) == (25, True)
    assert broken is not None  # at 25 it passes .5 / .9 of step 0's utility
    assert (broken.step, broken.closes, share(broken.drop)) == (10, False, ".05")
    assert compared_arms.closing(made_up(), "sft") is None


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        (ALIKE, ("no two lie .25 of", "by the lower bound: cat 25.", "still controls: cat 25, dpo 25", "overlap: no")),
        (APART, ("some lie .25 of", "replaced: cat 25", "still controls: dpo 25", "do not all overlap")),
        (OPEN, ("(.71 [.50, .71]; .79 [.79, .79]): whether any two lie .25 of the layers apart is open",)),
        ((ALIKE[0],), ("fewer than two matched arms have a carrier (cat 25; without: dpo 25)", "not known: dpo 25",
                       "fewer than two matched arms have a cone (cat 25; without: dpo 25)")),
    ],
)  # fmt: skip
def test_what_is_said_follows_from_the_numbers(arms: Sequence[dict[str, Row]], said: Sequence[str]) -> None:
    text = " ".join(claims(made_up(*arms), ["cat", "dpo"]))
    for part in said:
        assert part in text


def test_what_is_missing_says_why() -> None:
    tables = {
        "cone": [{"arm": "cat", "step": 25, "quantity": "dimension", "value": None, "lo": None, "hi": None,
                  "note": "gap too small"}],
    }  # fmt: skip
    one = Matched(tables, "cat", 25)
    assert one.dimension.text() == "– (gap too small)"
    assert one.angle.text() == "– (not measured)"
    assert one.old_direction == "– (not measured)"
    assert one.carrier == "– (not measured)"


def test_a_stand_in_is_said_to_be_one_and_decides_nothing() -> None:
    own = {**ALIKE[0]["transfer"], "carrier_admissible": False}
    tables = {**made_up(ALIKE[0]), "transfer": [own, ALIKE[0]["above"], ALIKE[0]["contrast"]]}
    one = Matched(tables, "cat", 25)
    assert one.removal("transfer").text() == ".90 [.80, 1.00] (stand-in)"
    assert one.old_direction == "– (no carrier at both)"
    nothing = {**own, "value": None, "lo": None, "hi": None, "n": 0, "reason": ""}
    assert Matched({"transfer": [nothing]}, "cat", 25).removal("transfer").text() == "– (of no prompts)"


def test_broken_answers_are_said_where_intervals_are_apart() -> None:
    def degenerate(arm: str, step: int, lo: float, hi: float) -> Row:
        asked = {"suite": "harmbench", "metric": "degenerate", "attack": "direct"}
        return {"arm": arm, "step": step, "value": (lo + hi) / 2, "lo": lo, "hi": hi, **asked}

    tables = made_up()
    broken = [
        degenerate("base", 0, 0, 0.1),
        degenerate("cat", 25, 0.05, 0.2),
        degenerate("dpo", 25, 0.3, 0.5),
    ]
    (said,) = [
        one
        for one in claims({"behaviour": [*tables["behaviour"], *broken]}, ["cat", "dpo"])
        if "Broken" in one
    ]
    assert "intervals apart: dpo 25." in said


def test_a_published_run_is_compared_by_its_tables() -> None:
    tables = PUBLISHED.tables()
    by = {one.arm: one for one in compared_arms.compared(tables)}
    assert {arm: one.step for arm, one in by.items()} == {
        "base": 0,
        "sft": 100,
        "r2d2": 100,
        "refusal_sft": 100,
    }
    one = by["r2d2"]
    place = PUBLISHED.row("selectors", arm="r2d2", step=100, used=True, profile="calibrated")
    assert one.carrier == f"{place['layer']}, {place['position']}"
    angle = PUBLISHED.row("drift", arm="r2d2", of=0, to=100, quantity="corrected_angle", site="first anchor")
    assert one.angle.text(".1f", "°") == "{value:.1f}° [{lo:.1f}°, {hi:.1f}°]".format(**angle)
    own = PUBLISHED.row("transfer", arm="r2d2", of=100, to=100, quantity="transfer", rank=1, from_arm="r2d2")
    assert one.removal("transfer").text() == bounds(own)
    assert one.dimension.why == "not measured"
    assert f"| r2d2 100 | {bounds(PUBLISHED.row('behaviour', arm='r2d2', step=100, **direct()))} |" in (
        compared_arms.behaviour_table(tables)
    )


def direct() -> dict[str, Any]:
    return {**compared_arms.SUITE, "attack": "direct"}


def test_the_recipe_is_a_configuration_with_every_arm() -> None:
    config = load_config(file=ROOT / "recipes" / "four_arms.yaml")
    assert set(config.arms) == {"sft", *ARMS}
    assert config.geometry.cone.enabled
    page = (ROOT / "docs" / "arms.md").read_text(encoding="utf-8")
    named = re.findall(r"`(training\.\w+\.\w+=[\d.]+)`", page)
    assert len(named) >= 9
    for override in named:
        assert load_config(file=ROOT / "recipes" / "four_arms.yaml", overrides=[override]) != config


def test_settings_that_were_tried_are_shown_at_every_anchor_beside_one_sft() -> None:
    sft = {"behaviour": [row for step in (10, 25) for row in anchor("sft", step, 0.7)]}
    runs: dict[str, Tables] = {
        name: {"behaviour": [*anchor("base", 0, 0.7), *anchor("lat", 10, first), *anchor("lat", 25, 0.75)]}
        for name, first in (("0.1", 0.2), ("0.05", 0.9))
    }
    table = compared_arms.tried_table("lat", runs, sft).splitlines()
    assert [line.split(" | ")[:2] for line in table[2:]] == [
        ["| 0.1", "10"], ["| 0.1", "25"], ["| 0.05", "10"], ["| 0.05", "25"],
    ]  # fmt: skip
    assert "yes: .50 below SFT at 10" in table[2]
    assert "no: .05 above SFT at 25" in table[4]
    assert "SFT" not in table[3]


@pytest.mark.slow
def test_a_small_study_is_run_published_and_written_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(
        tmp_path,
        "arms=[sft, r2d2, cat, lat, circuit_breakers, dpo]",
        "geometry.min_gap=0.000001",
        "geometry.cone={enabled: true, max_dimension: 2, prompts: 4, starts: 1, steps: 2, draws: 2}",
        "causal.transfer_ranks=[1]",
        "attacks.adaptive={enabled: true, at: all, method: prefill, behaviours: 2}",
    )
    chosen = run_arms(config, tmp_path / "run")
    assert [ref.arm for ref in chosen] == ["base", *config.arms]
    monkeypatch.setattr(publish, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    for template in (ROOT / "docs" / "results").glob("*.j2"):
        (tmp_path / "results" / template.name).write_text(template.read_text())
    for folder in (ROOT / "docs" / "results").iterdir():
        if folder.is_dir() and "-robust" not in folder.name and "-trajectory-" not in folder.name:
            (tmp_path / "results" / folder.name).symlink_to(folder)
    publish.add(tmp_path / "run", "qwen-0.5b-seed0-robust", "one CPU", "", 1.0, TABLES)
    run = publish.Published("qwen-0.5b-seed0-robust")
    measured = {name.partition("/")[0] for name in run.provenance["unfinished"]}
    assert "interventions" in measured
    kinds = {kind.kind for kind in MEASURES}
    at = {f"{kind}/{ref.name}" for ref in chosen for kind in kinds}
    assert not at & set(run.provenance["unfinished"])
    tables, text = run.tables(), publish.rendered()
    for one in compared_arms.compared(tables):
        assert (
            f"| {one.name} | {bounds(run.row('behaviour', arm=one.arm, step=one.step, **direct()))} |" in text
        )
        assert f"| {one.name} | {one.carrier} | {one.depth.text()} |" in text
        dimension = run.row("cone", arm=one.arm, step=one.step, quantity="dimension")
        assert one.dimension.there == (dimension["value"] is not None)
        assert one.dimension.there or dimension["note"] in one.dimension.text()
    for claim in claims(tables, ARMS):
        assert claim.split(":")[0] in text
    forget(tmp_path / "run", "verdict")  # as if it had been stopped before
    publish.write_named(publish.finished_part(open_run(tmp_path / "run", recorded=False)), tmp_path, TABLES)
    stopped = read_tables(tmp_path)
    assert not stopped["verdict"]
    assert {row["quantity"] for row in tables["drift"]} - {row["quantity"] for row in stopped["drift"]} == {
        f"p_{name}_{what}" for name in ("depth", "centre", "argmin") for what in ("moved", "stayed")
    }
    assert compared_arms.geometry_table(stopped) == compared_arms.geometry_table(tables)
