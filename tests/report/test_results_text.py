"""The published results: the text follows from the tables, and the tables are those that were published."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import publish
from across_seeds import RATES
from caryatid.artifacts import file_sha256
from caryatid.attacks.gcg.settings import GcgSettings, Ranking
from seed_claims import GAIN
from shares import share

RUNS = sorted(path.parent for path in publish.RESULTS.glob("*/provenance.json"))


def test_the_text_is_rendered_from_the_tables() -> None:
    assert (publish.RESULTS / "README.md").read_text(encoding="utf-8") == publish.rendered()


@pytest.mark.parametrize("folder", RUNS, ids=[folder.name for folder in RUNS])
def test_tables_are_those_that_were_published_and_name_no_place_of_a_machine(folder: Path) -> None:
    run = publish.Published(folder.name)
    found = {file.name: file_sha256(file) for file in (folder / "tables").glob("*.parquet")}
    assert found == run.provenance["tables"]
    assert run.provenance.get("unfinished") or "verdict.parquet" in found
    for file in folder.rglob("*"):
        if file.is_file():
            assert b"/tmp/" not in file.read_bytes(), file.name


def test_a_number_that_is_not_there_is_an_error() -> None:
    run = publish.Published(RUNS[0].name)
    with pytest.raises(LookupError, match="0 rows of behaviour"):
        run.row("behaviour", arm="nobody")


def test_shares_are_written_without_the_nought() -> None:
    written = [share(value) for value in (0.725, -0.25, 1.0, 12.345)]
    assert written == [".72", "-.25", "1.00", "12.35"] or written == [".73", "-.25", "1.00", "12.35"]


START = " ".join((publish.RESULTS.parents[1] / "README.md").read_text(encoding="utf-8").split())
SEEDS = [publish.Published(f"qwen-0.5b-trajectory-seed{seed}") for seed in range(4)]


def spread(arms: str, table: str, form: str = "", steps: tuple[int, ...] = (500,), **wanted: Any) -> str:
    """Smallest and largest value of some arms over the seeds, as the start page writes them."""
    found = [
        row["value"]
        for run in SEEDS
        for arm in arms.split()
        for step in steps
        for row in run.rows(
            table, arm=arm, **{"of": 0, "to": step} if table != "behaviour" else {"step": step}, **wanted
        )
    ]
    assert len(found) >= 2
    low, high = ((format(one, form) + "°" if form else share(one)) for one in (min(found), max(found)))
    return f"{low} to {high}"


def test_the_start_page_quotes_the_behaviour_of_the_seeds() -> None:
    compliance = {"suite": "harmbench", "metric": "compliance"}
    fixed, adaptive = compliance | {"attack": "fixed_source"}, compliance | {"attack": "adaptive"}
    every = (50, 100, 250, 500)
    most = [
        spread(arm, "behaviour", steps=every, **fixed).split(" to ")[1] for arm in ("r2d2", "r2d2_static")
    ]
    own = [spread(arms, "behaviour", **adaptive) for arms in ("r2d2", "r2d2_static", "sft refusal_sft")]
    for quoted in (
        f"R2D2 closes: from step 50 it answers at most {most[0]} of the attacks made on step 0",
        f"never refreshed (at most {most[1]})",
        f"stays open ({spread('refusal_sft', 'behaviour', **fixed)} at 500)",
        "R2D2 answers {}, that control {}, SFT and the taught one {}".format(*own),
        "asked directly {}, {}, {} and {}".format(
            *(
                spread(arm, "behaviour", **compliance, attack="direct")
                for arm in ("r2d2", "r2d2_static", "sft", "refusal_sft")
            )
        ),
    ):
        assert quoted in START, quoted
    direct = compliance | {"attack": "direct", "arm": "r2d2"}
    reopened = [
        run.row("behaviour", step=500, **direct)["lo"] > run.row("behaviour", step=50, **direct)["hi"]
        for run in SEEDS
    ]
    assert reopened == [True, True, True, False]
    assert "(R2D2 more than at 50 in three of the four)" in START
    for run in SEEDS:
        gains = {
            arm: run.row("behaviour", arm=arm, step=500, **RATES[GAIN])
            for arm in ("r2d2", "r2d2_static", "refusal_sft")
        }
        assert gains["r2d2"]["lo"] < 0 > gains["r2d2_static"]["lo"]
        assert gains["refusal_sft"]["lo"] > 0


def test_the_start_page_quotes_the_geometry_of_the_seeds() -> None:
    turned = {"form": ".0f", "quantity": "corrected_angle", "site": "first anchor"}
    arms = [spread(one, "drift", **turned) for one in ("r2d2", "sft", "refusal_sft r2d2_static")]
    assert "by {} from step 0 to 500 (SFT {}, the controls {})".format(*arms) in START
    labels = [run.row("verdict", arm="r2d2", of=0, to=500)["label"] for run in SEEDS]
    assert sorted(labels) == ["drift only"] * 3 + ["undetermined"]
    places = [
        publish.compared_arms.Matched(run.tables(), arm, step)
        for run in SEEDS
        for arm, step in (("base", 0), ("r2d2", 500))
    ]
    assert [share(one.depth.value) for one in places] == [".71", ".58"] * 4
    earlier = publish.compared_arms.Matched(
        publish.Published("qwen-0.5b-seed0-four-arms").tables(), "r2d2", 500
    )
    assert earlier.place is not None
    assert f"to {share(earlier.place['argmin_layer'] / 24)}; a move counts" in START
    removed = {"quantity": "transfer", "rank": 1}
    old = spread("r2d2", "transfer", from_arm="base", **removed)
    own = [
        run.row("transfer", arm="r2d2", of=500, to=500, from_arm="r2d2", **removed)["value"] for run in SEEDS
    ]
    quoted = f"still removes {old} of the refusals at 500, R2D2's own {share(min(own))} to {share(max(own))}"
    assert quoted in START


def test_what_the_text_says_of_both_seeds_holds() -> None:
    seeds = [publish.Published(name) for name in ("qwen-0.5b-seed0-four-arms", "qwen-0.5b-seed1")]
    for run in seeds:
        rows = {
            (row["arm"], row["step"], row["suite"], row["metric"], row["attack"]): row
            for row in run.rows("behaviour")
            if row["metric"] in ("compliance", "any_refusal", "pass")
        }
        direct, fixed = ("harmbench", "compliance", "direct"), ("harmbench", "compliance", "fixed_source")
        safe, useful = ("xstest_safe", "any_refusal", "none"), ("utility", "pass", "none")
        base = {name: rows["base", 0, *name] for name in (direct, safe, useful)}
        assert rows["sft", 500, *direct]["value"] > base[direct]["value"]
        for step in (50, 100, 250, 500):
            assert rows["r2d2", step, *fixed]["hi"] < 0.1 < 0.8 < rows["sft", step, *fixed]["lo"]
            assert rows["r2d2", step, *direct]["hi"] < base[direct]["lo"]
            assert rows["r2d2", step, *safe]["value"] <= base[safe]["value"]
            for arm in ("sft", "r2d2"):
                assert rows[arm, step, *useful]["hi"] > base[useful]["lo"]


def test_what_the_text_says_of_refused_look_alikes_differs_between_the_seeds() -> None:
    def at(name: str, arm: str, step: int, suite: str) -> Mapping[str, Any]:
        wanted = {"arm": arm, "step": step, "suite": suite, "metric": "any_refusal"}
        return publish.Published(name).row("behaviour", **wanted)

    for suite in ("xstest_safe", "xstest_unsafe"):
        for name, below in (("qwen-0.5b-seed0-four-arms", True), ("qwen-0.5b-seed1", False)):
            ended, before = at(name, "r2d2", 500, suite), at(name, "base", 0, suite)
            assert (ended["hi"] < before["lo"]) == below
            assert below or ended["hi"] > before["value"]
    unsafe = "qwen-0.5b-seed1", "xstest_unsafe"
    assert at(unsafe[0], "r2d2", 500, unsafe[1])["value"] >= at(unsafe[0], "base", 0, unsafe[1])["value"]


def test_what_the_text_says_of_later_anchors_holds() -> None:
    run = publish.Published("qwen-0.5b-seed0-four-arms")
    decided = run.rows("verdict")
    assert {row["label"] for row in decided} <= {"drift only", "no change", "undetermined"}
    turns = {
        (row["arm"], row["from"], row["to"]): row
        for row in run.rows("drift", quantity="corrected_angle", site="first anchor")
    }
    others = ("sft", "refusal_sft", "r2d2_static")
    for pair in ((50, 100), (100, 250), (250, 500)):
        for arm in others:
            assert turns[arm, *pair]["hi"] < turns["r2d2", *pair]["lo"]


def test_the_page_on_speed_quotes_how_many_winners_are_kept() -> None:
    """And the defaults follow from them: at least .95 at the width that was measured."""
    root = publish.RESULTS.parents[1]
    file = root / "benchmarks" / "results" / "gcg-precision-cuda.json"
    found, page = json.loads(file.read_text()), (root / "docs" / "performance.md").read_text(encoding="utf-8")
    measured: tuple[tuple[str, str, Ranking, int], ...] = (
        ("winners-by-number", "float32 → bfloat16", "bfloat16", 200),
        ("winners8-by-number", "bfloat16 → float8", "float8", 200),
        ("winners-float8-1.5b", "bfloat16 → float8, 1.5B", "float8", 400),
    )
    for name, title, low, steps in measured:
        part = found[name]["winners"]
        assert part["case_steps"] == steps
        (row,) = re.findall(rf"^\| {title} \|(.*)\|$", page, re.MULTILINE)
        cells = [float(cell) for cell in row.split("|")]
        assert cells == [*part["kept"].values(), part["lowest_rank"]]
        assert part["kept"][str(GcgSettings(width=128).decided(low))] >= 0.95


def test_the_page_on_speed_quotes_final_losses_with_float8() -> None:
    root = publish.RESULTS.parents[1]
    found = json.loads((root / "benchmarks" / "results" / "gcg-precision-cuda.json").read_text())
    page = " ".join((root / "docs" / "performance.md").read_text(encoding="utf-8").split())
    for name, form in (
        (
            "losses-float8",
            "they are {} nats above bfloat16 alone (95 % interval of the paired difference {} to {}; {}",
        ),
        ("losses-float8-half", "(another H200, alone): +{} [{}, {}], {}"),
    ):
        part = found[name]["losses"]
        finals = {of: np.array(losses) for of, losses in part["finals"].items()}
        mean = (finals["float8"] - finals["model"]).mean()
        assert mean == pytest.approx(part["difference"])
        written = [f"{one:+.3f}".replace("0.", ".").replace("-", "−") for one in (mean, *part["interval"])]
        means = f"means {finals['float8'].mean():.3f} and {finals['model'].mean():.3f}".replace(" 0.", " .")
        assert form.format(written[0].strip("+"), *written[1:], means) in page
        assert f"{part['seconds']['float8']:.0f} s for {part['seconds']['model']:.0f} s" in page
    assert found["losses-float8-half"]["arguments"]["rescored"] == str(
        GcgSettings(width=128).decided("float8")
    )


def test_the_page_on_scale_quotes_what_two_cards_bring() -> None:
    root = publish.RESULTS.parents[1]
    found = json.loads((root / "benchmarks" / "results" / "two-cards-cuda.json").read_text())
    page = (root / "docs" / "scale.md").read_text(encoding="utf-8")
    attacks, r2d2, parts = (found[name] for name in ("attacks", "r2d2", "fsdp2"))
    alone, real = found["attacks_alone"], found["attacks_real"]
    ends = parts["one_process"], parts["two_processes"]

    def cells(one: float, two: float, ratio: bool = True) -> str:
        return f"| {one:.1f} | {two:.1f} | {publish.share(one / two) if ratio else ''}".rstrip() + " |"

    for line in (
        *(cells(one["seconds"]["1"], one["seconds"]["2"]) for one in (attacks, alone, real)),
        cells(*(r2d2[n]["seconds"]["update"] for n in "12")),
        cells(*(r2d2[n]["peak_gib"] for n in "12"), ratio=False),
        cells(*(end["seconds"] for end in ends)),
        cells(*(end["device_bytes"] / 2**30 for end in ends), ratio=False),
    ):
        assert line in page, line
    assert f"{attacks['cases']} cases × 40 steps" in page
    assert (
        f"no split of these blocks is faster than {attacks['cases'] / attacks['most_cases_of_a_part']:.2f}"
        in page
    )
    for one, two, digits in (
        (*(attacks["mean_loss"][n] for n in "12"), 3),
        (*(end["loss_sft"] for end in ends), 4),
        (*(end["gcg_loss"] for end in ends), 4),
    ):
        assert f"{one:.{digits}f} and {two:.{digits}f}" in page
    assert attacks["equal_cases"] == 0
    whole, again = alone["seconds"]["1"], alone["seconds_again"]["2"]
    assert f"{again:.1f} s the second time ({whole / again:.2f})" in page
    first, second = zip(alone["parts"]["first"], alone["parts"]["again"], strict=True)
    assert " and ".join(f"{took:.1f}" for took in first) in page
    assert re.search(r" and\s+".join(f"{took:.1f}" for took in second), page)
    assert " and ".join(f"{whole / took:.2f}" for took in first) in page
    low, high = sorted(round(100 * (b / a - 1)) for a, b in zip(first, second, strict=True))
    assert f"{low} to {high} % longer" in page
    assert len(set(alone["target_tokens"])) == 1
    assert f"as many target tokens ({alone['target_tokens'][0]})" in page


def test_the_page_on_scale_quotes_what_four_cards_bring() -> None:
    root = publish.RESULTS.parents[1]
    found, before = (
        json.loads((root / "benchmarks" / "results" / f"{name}-cards-cuda.json").read_text())
        for name in ("four", "two")
    )
    page = (root / "docs" / "scale.md").read_text(encoding="utf-8")
    attacks, r2d2 = found["attacks"], {"1": before["r2d2"]["1"], **found["r2d2"]}
    one, four = (attacks["seconds"][n] for n in "14")
    update = [r2d2[n]["seconds"]["update"] for n in "124"]
    losses = " and ".join(f"{attacks['mean_loss'][n]:.4f}".removeprefix("0") for n in "14")
    for line in (
        f"split by case; s | {one:.1f} | | {four:.1f} | {one / four:.2f} |",
        "`training.shard: none`; s | {:.1f} (above) | {:.1f} | {:.1f}".format(*update),
        f"{update[2]:.1f} | {update[0] / update[2]:.2f} |",
        "GiB | {:.1f} (above) | {:.1f} | {:.1f} | |".format(*(r2d2[n]["peak_gib"] for n in "124")),
        f"{four - one / 4:.0f} s of {four:.1f}",
        "takes {:.1f} s on two cards and {:.1f} s on four".format(*(r2d2[n]["seconds"]["gcg"] for n in "24")),
        f"efficiency falls from {share(update[0] / update[1] / 2)} to {share(update[0] / update[2] / 4)}",
        "SFT {:.4f} and {:.4f}".format(*(r2d2[n]["losses"]["sft"] for n in "24")),
        f"Mean losses are {losses}",
    ):
        assert line in page, line
    assert attacks["equal_cases"] == 0
    assert attacks["cases"] == 4 * attacks["most_cases_of_a_part"]


def test_the_start_page_quotes_kinds_of_robust_training() -> None:
    text = START
    tables = publish.Published("qwen-0.5b-seed0-robust").tables()
    found = {one.arm: one for one in publish.compared_arms.compared(tables) if one.matched}
    arms = [found[arm] for arm in ("r2d2", "cat", "dpo")]
    assert len(found) == 3
    direct = [one.direct.value for one in arms]
    assert f"({share(min(direct))} to {share(max(direct))})" in text
    depths = [one.depth for one in arms]
    values = [share(one.value) for one in depths]
    assert (
        f"lie at {min(values)} to {max(values)} of the depth (whether any two are a quarter of it apart is open)"
        in text
    )
    assert max(one.hi for one in depths) - min(one.lo for one in depths) >= 0.25  # not shown to be near
    assert max(one.lo for one in depths) - min(one.hi for one in depths) < 0.25  # nor to be apart
    assert [one.old_direction for one in arms] == ["still controls"] * 3
    removed = [share(one.removal("transfer", "base").value) for one in arms]
    assert "removes {}, {} and {} of their refusals".format(*removed) in text
    suffixes = [share(one.behaviour()["fixed-source answered"].value) for one in arms]
    assert "succeed in {}, {} and {}".format(*suffixes) in text


def test_what_is_said_of_kinds_of_robust_training_is_so() -> None:
    run = publish.Published("qwen-0.5b-seed0-robust")

    def rate(arm: str, step: int, suite: str, metric: str, attack: str = "none") -> dict[str, Any]:
        return run.row("behaviour", arm=arm, step=step, suite=suite, metric=metric, attack=attack)

    before = rate("base", 0, "xstest_safe", "any_refusal")
    for arm in ("r2d2", "cat", "dpo"):
        assert rate(arm, 10, "xstest_safe", "any_refusal")["lo"] > 0.95
        assert rate(arm, 10, "utility", "pass")["hi"] < rate("base", 0, "utility", "pass")["lo"]
        assert (
            rate(arm, 100, "harmbench", "compliance", "adaptive")["lo"] > 0.5
        )  # begun with the target: open
    again = rate("r2d2", 25, "xstest_safe", "any_refusal")
    assert again["lo"] <= before["hi"]
    assert again["hi"] < 0.5
    for step in (10, 25, 50, 100):
        assert rate("lat", step, "xstest_safe", "any_refusal")["lo"] > 0.95
        assert run.row("training", arm="circuit_breakers", step=step)["loss_reroute"] > 0.999
    suffixes = [rate(arm, 100, "harmbench", "compliance", "fixed_source") for arm in ("r2d2", "cat", "dpo")]
    assert suffixes[0]["hi"] < min(one["lo"] for one in suffixes[1:])


def test_what_is_said_of_tuned_arms_is_so() -> None:
    names = ("", "-tried-a", "-tried-b", "-tuned")
    untuned, *tried = (publish.Published(f"qwen-0.5b-seed0-robust{name}") for name in names)

    def value(
        run: publish.Published, arm: str, step: int, suite: str, metric: str, attack: str = "none"
    ) -> float:
        return float(
            run.row("behaviour", arm=arm, step=step, suite=suite, metric=metric, attack=attack)["value"]
        )

    radii = [float(run.setting("training", "lat", "radius")) for run in tried]
    assert radii == sorted(radii, reverse=True)
    assert [run.setting("training", "circuit_breakers", "retain") for run in tried] == [
        "0.1",
        "0.01",
        "0.001",
    ]
    for attack in ("direct", "adaptive"):
        answered = [value(run, "lat", 100, "harmbench", "compliance", attack) for run in tried]
        assert answered == sorted(answered)
    for step in (25, 50):
        refused = [value(run, "lat", step, "xstest_safe", "any_refusal") for run in tried]
        assert refused == sorted(refused, reverse=True)
    for run in tried:
        behaviour = {
            "behaviour": run.rows("behaviour") + untuned.rows("behaviour", arm="sft") * (run is tried[1])
        }
        closes = {arm: publish.compared_arms.closing(behaviour, arm) for arm in ("lat", "circuit_breakers")}
        assert [bool(found and found.closes) for found in closes.values()] == [True, False]
        assert run.row("training", arm="circuit_breakers", step=100)["loss_reroute"] < 0.15
        assert (
            run.row("behaviour", arm="lat", step=10, suite="xstest_safe", metric="any_refusal")["lo"] > 0.95
        )
        broken = [
            value(run, "circuit_breakers", step, "harmbench", "degenerate", "direct") for step in (25, 100)
        ]
        useful = [value(run, "circuit_breakers", step, "utility", "pass") for step in (25, 100)]
        assert broken[0] > broken[1]
        assert useful[0] < 0.3 < 0.75 < useful[1]
    before = value(untuned, "base", 0, "utility", "pass")
    quoted = [
        share(value(run, "lat", 100, "harmbench", "compliance", attack))
        for run in (tried[2], tried[0])
        for attack in ("direct", "fixed_source")
    ]
    narrow, wide = (format(radii[which], "g").lstrip("0") for which in (2, 0))
    said = (
        f"answers {quoted[0]} of direct requests and {quoted[1]} of fixed-source attacks at a radius of {narrow}, "
        f"which a rule chose, {quoted[2]} and {quoted[3]} at {wide}"
    )
    assert said in START
    begun = {
        (run.folder.name, arm, step): value(run, arm, step, "harmbench", "compliance", "adaptive")
        for run in (untuned, *tried)
        for arm, steps in publish.compared_arms.asked_steps(run.tables()).items()
        for step in steps
        if value(run, arm, step, "utility", "pass") >= publish.compared_arms.USEFUL * before
    }
    assert min(begun, key=lambda one: begun[one]) == ("qwen-0.5b-seed0-robust-tried-a", "lat", 100)
