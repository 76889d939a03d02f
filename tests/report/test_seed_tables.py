"""Tables of several seeds: what each has, has from its arms that were run again, or lacks."""

from dataclasses import replace

from made_up_seeds import PROVENANCE, behaviour, pair, seed

import across_seeds
import repeated_run
import seed_costs


def table_row(table: str, begin: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {begin} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_tables_have_dashes_where_a_seed_lacks_something() -> None:
    rows = behaviour(direct={("base", 0): 0.7, ("r2d2", 50): 0.3, ("r2d2", 100): 0.4})
    whole = seed(0, pair("r2d2", 0, 50), pair("r2d2", 0, 100, "", angle=40), rows=rows)
    part = seed(1, pair("r2d2", 0, 50, "undetermined", flag="expansion"), rows=rows[:2])
    verdicts = across_seeds.verdict_table([whole, part])
    assert table_row(verdicts, "r2d2 0 → 50") == [
        "*drift only*, 30.0° [29.0°, 31.0°]", "*undetermined* (expansion), 30.0° [29.0°, 31.0°]",
        "1 of 2 drift only, 1 of 2 undetermined",
    ]  # fmt: skip
    assert table_row(verdicts, "r2d2 0 → 100") == ["–, 40.0° [39.0°, 41.0°]", "–", "–"]
    removed = across_seeds.removal_table([whole, part])
    assert table_row(removed, "r2d2 0 → 100") == [
        ".80 [.75, .85] / .90 [.85, .95] / .10 [.05, .15] of 60",
        "–",
    ]
    shown = across_seeds.behaviour_table([whole, part])
    assert table_row(shown, "r2d2 100 | 0")[1:3] == [".40 [.35, .45]", "–"]
    assert set(table_row(shown, "r2d2 100 | 1")[1:]) == {"–"}
    carriers = across_seeds.carrier_table([whole, part])
    assert table_row(carriers, "base 0 | 1")[1:] == ["– (not measured)", "–", "–", "–", "–"]
    assert across_seeds.sizes([whole, part]) == "direct answered 100"


def test_what_a_seed_lacks_comes_from_its_arms_run_again_with_a_dagger() -> None:
    rows = behaviour(direct={("r2d2", 50): 0.3, ("sft", 50): 0.3})
    again = seed(1, pair("r2d2", 0, 50, "undetermined", angle=20), pair("sft", 0, 50, "no change"))
    lacking = seed(1, pair("r2d2", 0, 50, "", angle=40), pair("sft", 0, 50, "drift only"), rows=rows)
    whole, part = seed(0, pair("r2d2", 0, 50), rows=rows), replace(lacking, again=again)
    assert table_row(across_seeds.verdict_table([whole, lacking]), "r2d2 0 → 50")[1:] == [
        "–, 40.0° [39.0°, 41.0°]",
        "1 of 1 drift only",
    ]
    verdicts = across_seeds.verdict_table([whole, part])
    assert table_row(verdicts, "r2d2 0 → 50")[1:] == [
        "*undetermined*, 20.0° [19.0°, 21.0°] †",
        "1 of 2 drift only, 1 of 2 undetermined",
    ]
    assert table_row(verdicts, "sft 0 → 50")[1] == "*drift only*, 30.0° [29.0°, 31.0°]"  # it has one itself
    removed = across_seeds.removal_table([whole, part])
    assert ["†" in cell for cell in table_row(removed, "r2d2 0 → 50")] == [False, True]
    assert [row["label"] for row in across_seeds.decided(part)] == ["drift only", "undetermined"]
    (said,) = across_seeds.undetermined([whole, part])
    assert said.startswith("r2d2 0 → 50, seed 1: ")
    assert across_seeds.undecided([whole, part]) == ["sft 0 → 50, seed 0"]
    assert across_seeds.undecided([whole, lacking]) == ["sft 0 → 50, seed 0", "r2d2 0 → 50, seed 1"]


def test_arms_run_again_are_one_run_a_seed_with_one_step_0() -> None:
    base = behaviour(direct={("base", 0): 0.7})
    runs = [
        seed(0, pair("sft", 0, 50), rows=base + behaviour(direct={("sft", 50): 0.3})),
        seed(0, pair("r2d2", 0, 50), rows=base + behaviour(direct={("r2d2", 50): 0.2})),
        seed(2, pair("r2d2", 0, 50)),
    ]
    found = repeated_run.together(runs)
    assert list(found) == [0, 2]
    assert found[0].arms == ["sft", "r2d2"]
    assert [row["arm"] for row in found[0].tables["behaviour"]] == ["base", "sft", "r2d2"]
    assert [bool(one.again) for one in repeated_run.with_again([seed(0), seed(1)], runs)] == [True, False]


def test_an_undetermined_verdict_says_what_is_missing_and_what_was_in_reach() -> None:
    (said,) = across_seeds.undetermined(
        [seed(0, pair("r2d2", 0, 50)), seed(1, pair("sft", 0, 50, "undetermined"))]
    )
    assert said == (
        "sft 0 → 50, seed 1: whether its place changed is not sure enough; the angle cannot be told from 10°, from "
        "which on it counts as a turn. Within reach: all."
    )


def test_nulls_are_counted_by_seed() -> None:
    rows = [
        {"kind": "same_checkpoint", "label": label, "count": count}
        for label, count in (("undetermined", 2), ("drift only", 1))
    ]
    seeds = [seed(0, {"nulls": rows}), seed(1)]
    said = "seed 0: 1 false labels of 3 redraws (2 *undetermined*, 1 *drift only*); seed 1: not redrawn"
    assert across_seeds.nulls_text(seeds) == said


def test_costs_by_arm_hold_every_second_once() -> None:
    found = seed_costs.by_arm(PROVENANCE["seconds_by_place"], ["sft", "r2d2"])
    assert found == {"sft": 6.0, "r2d2": 19.0, "": 13.0}
    one = seed(0, rows=behaviour(direct={("base", 0): 0.7, ("sft", 50): 0.7, ("r2d2", 50): 0.3}))
    assert seed_costs.one_arm([one]) == "`sft` 11, `r2d2` 24"  # with the shared 13, without nulls of 8
    costs = seed_costs.cost_table([one])
    assert table_row(costs, "**all stages**") == ["38"]
    assert table_row(costs, "of all: r2d2 alone") == ["19"]
