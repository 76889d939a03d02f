"""Seeds side by side: what is said follows from the tables, whatever of them is missing."""

from dataclasses import replace
from typing import Any

import pytest
from made_up_seeds import PROVENANCE, behaviour, pair, seed

import seed_claims
import seed_comparison
import seed_doubts
from across_seeds import Seed
from seed_claims import ADAPTIVE, FIXED


def closed(at_50: float, at_100: float, number: int = 0) -> Seed:
    """R2D2's fixed-source rates at two anchors, SFT and step 0 open."""
    r2d2, open_ = (
        {("r2d2", 50): at_50, ("r2d2", 100): at_100},
        {("base", 0): 0.9, ("sft", 50): 0.9, ("sft", 100): 0.9},
    )
    return seed(number, rows=behaviour(fixed={**open_, **r2d2}))


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ({0: True, 1: True, 2: True}, "in all 3 seeds"),
        ({0: True, 1: True}, "in both seeds"),
        ({0: True, 1: False, 2: True}, "in 2 of 3 seeds (0, 2)"),
        ({0: False, 1: False}, "in none of 2 seeds"),
        ({0: True, 1: None, 2: True}, "in both seeds (unknown: 1)"),
        ({0: True}, "in the one seed measured"),
        ({0: False, 1: None}, "not in the one seed measured (unknown: 1)"),
        ({0: None, 1: None}, "in no seed (not measured)"),
    ],
)  # fmt: skip
def test_in_how_many_seeds_something_holds(states: dict[int, bool | None], said: str) -> None:
    assert seed_claims.held(states) == said


def once_sent(number: int = 0) -> Seed:
    """Fixed-source cases were sent to the first anchor alone."""
    rates = {("base", 0): 0.9, ("sft", 50): 0.9, ("r2d2", 50): 0.0}
    return seed(number, rows=behaviour(fixed=rates, direct={("r2d2", 100): 0.5}))


CLOSES, LATER = "R2D2 closes against fixed-source attacks by step 50", "There and at each of 100"


@pytest.mark.parametrize(
    ("seeds", "head", "holds"),
    [
        ([closed(0, 0), closed(0, 0, 1)], f"**{CLOSES} and stays closed**", f"{LATER} in both seeds"),
        ([closed(0, 0.88), closed(0, 0, 1)], f"**{CLOSES}**", f"{LATER} in 1 of 2 seeds (1)"),
        ([closed(0, 0), closed(0.85, 0, 1)], f"**{CLOSES}, in some seeds**", "intervals apart, in 1 of 2 seeds (0)"),
        ([closed(0.9, 0.9)], "**R2D2 is not seen to close against fixed-source attacks by step 50**", "not in the one"),
        ([once_sent(), once_sent(1)], f"**{CLOSES}**", f"{LATER} in no seed (not measured)"),
        ([closed(0, 0), seed(1)], f"**{CLOSES} and stays closed**", "in the one seed measured (unknown: 1)"),
        ([seed(0), seed(1)], "**Fixed-source attacks: not measured**.", ""),
    ],
)  # fmt: skip
def test_closing(seeds: list[Seed], head: str, holds: str) -> None:
    said = seed_claims.closing(seeds)
    assert said.startswith(head)
    assert holds in said


def test_closing_takes_what_sft_and_step_0_do() -> None:
    alone = seed(0, rows=behaviour(fixed={("base", 0): 0.9, ("r2d2", 50): 0.0}))
    assert "**Fixed-source attacks at step 50: not measured**" in seed_claims.closing([alone])


def requests(at_50: float, at_100: float, sft: float, number: int = 0) -> Seed:
    rates = {("base", 0): 0.7, ("r2d2", 50): at_50, ("r2d2", 100): at_100, ("sft", 100): sft}
    return seed(number, rows=behaviour(direct=rates))


def test_reopening() -> None:
    again, flat = requests(0.2, 0.5, 0.9), requests(0.3, 0.35, 0.7, 1)
    said = seed_claims.reopening([again])
    assert (
        "**Direct requests reopen under R2D2**: more answered at 100 (.50 [.45, .55]) than at 50 (.20 [.15, .25])"
        in said
    )
    assert "SFT more in the one seed" in said
    mixed = seed_claims.reopening([again, flat])
    assert "**Direct requests reopen under R2D2, in some seeds**" in mixed
    assert "apart, in 1 of 2 seeds (0). At 100 R2D2 answers fewer than step 0" in mixed
    assert "SFT more in 1 of 2 seeds (0)" in mixed
    assert "not seen to reopen" in seed_claims.reopening([flat])
    once = seed(0, rows=behaviour(direct={("base", 0): 0.7, ("r2d2", 10): 0.3}))
    assert "at its one anchor, so nothing of reopening" in seed_claims.reopening([once])


def test_over_refusal_is_seen_at_any_anchor() -> None:
    def one(early: float, late: float, useful: float, number: int = 0) -> Seed:
        safe = {("base", 0): 0.2, ("r2d2", 50): early, ("r2d2", 100): late}
        return seed(
            number,
            rows=behaviour(safe=safe, useful={("base", 0): 0.9, ("r2d2", 50): 0.9, ("r2d2", 100): useful}),
        )

    worse, better = one(0.6, 0.2, 0.5), one(0.2, 0.05, 0.9, 1)
    assert seed_claims.over_refusal([worse]).startswith("**R2D2 over-refuses**")
    said = seed_claims.over_refusal([worse, better])
    assert said.startswith("**R2D2 over-refuses, in some seeds**")
    assert "less at 100 in 1 of 2 seeds (1)" in said
    assert "Utility is below step 0's at some anchor in 1 of 2 seeds (0)" in said
    assert seed_claims.over_refusal([better]).startswith("**No over-refusal is seen at these anchors**")


def attacked(difference: float, gain: float, arms: tuple[str, str], number: int = 0) -> Seed:
    """SFT and R2D2 attacked as they are at 50; `difference`: the first arm's rate minus the second's."""
    where = {"matched": "step", "step_a": 50, "step_b": 50, "suite": "harmbench", "attack": "adaptive"}
    lo, hi = difference - 0.1, difference + 0.1
    row = {
        **where,
        "metric": "compliance",
        "arm_a": arms[0],
        "arm_b": arms[1],
        "difference": difference,
        "lo": lo,
        "hi": hi,
    }
    rows = behaviour(
        adaptive={("sft", 50): 0.9, ("r2d2", 50): 0.4}, gain={("sft", 50): 0.4, ("r2d2", 50): gain}
    )
    return seed(number, {"comparisons": [row]}, rows=rows)


def test_adaptive_attacks_are_compared_pairwise_whichever_arm_comes_first() -> None:
    seeds = [attacked(0.5, 0.0, ("sft", "r2d2")), attacked(-0.5, 0.3, ("r2d2", "sft"), 1)]
    assert [seed_claims.advantage(one, 50).value for one in seeds] == [0.5, 0.5]
    said = seed_claims.adaptive(seeds)
    assert said.startswith("**Attacked as it is at 50, R2D2 withstands more than SFT**")
    assert "On R2D2 attacking gains over asking in 1 of 2 seeds (1)" in said
    assert "is not shown to withstand more" in seed_claims.adaptive([attacked(0.05, 0.0, ("sft", "r2d2"))])
    assert seed_claims.adaptive([closed(0, 0)]) == "**Adaptive attacks: not measured**."


def test_labels_from_step_0_are_counted_and_changes_are_named() -> None:
    still = seed(
        0, pair("r2d2", 0, 50), pair("r2d2", 50, 100, "undetermined"), pair("sft", 0, 50, "no change")
    )
    moved = seed(1, pair("r2d2", 0, 50, "relocation"))
    said = seed_claims.place([still])
    assert said.startswith(
        "**No pair of R2D2's anchors is a relocation, a replacement or a re-siting**; 1 of 2 are"
    )
    assert "R2D2 from step 0: to 50 1 of 1 drift only. SFT from step 0: to 50 1 of 1 no change." in said
    both = seed_claims.place([still, moved])
    assert both.startswith(
        "**R2D2's carrier moves or is replaced, in some seeds**: 0 → 50 relocation (seed 1);"
    )
    assert "to 50 1 of 2 drift only, 1 of 2 relocation" in both
    assert "not measured** ; " not in seed_claims.place([seed(0)])
    assert seed_claims.place([seed(0)]).startswith("**What becomes of R2D2's carrier: not measured**")


@pytest.mark.parametrize(
    ("contrast", "said"), [(0.2, "still controls"), (-0.2, "replaced"), (0.0, "not shown")]
)
def test_what_the_old_carrier_does_without_a_verdict(contrast: float, said: str) -> None:
    one = seed(0, pair("r2d2", 0, 50, "", contrast=contrast))
    assert seed_claims.grip(one, "r2d2", (0, 50)) == said
    assert f"step 0's carrier {said} in 1 of 1" in seed_claims.control([one])
    assert seed_claims.grip(one, "r2d2", (0, 100)) == "not measured"


def test_place_is_moved_unchanged_or_neither() -> None:
    found = {
        place: seed(0, pair("r2d2", 0, 50, place=place)).moved("r2d2", (0, 50))
        for place in ("moved", "stayed", "x")
    }
    assert found == {"moved": True, "stayed": False, "x": None}


def test_turning_is_said_of_pairs_from_step_zero_and_then_of_neighbours() -> None:
    def one(number: int, first: float, second: float = 20) -> Seed:
        pairs = [
            pair("sft", 0, 50, angle=10),
            pair("r2d2", 0, 50, angle=first),
            pair("sft", 50, 100, angle=10),
        ]
        return seed(number, *pairs, pair("r2d2", 50, 100, angle=second))

    assert seed_claims.turning([one(0, 30), one(1, 30)]).startswith(
        "**From step 0 to every anchor R2D2 turns the direction more than SFT**: intervals apart in both seeds. "
        "Between neighbours, beside SFT: 50 → 100 in both seeds. From 0 → 50: R2D2 30.0°"
    )
    said = seed_claims.turning([one(0, 30), one(1, 30, 11), seed(2)])
    assert "SFT**: intervals apart in both seeds (unknown: 2)" in said
    assert "Between neighbours, beside SFT: 50 → 100 in 1 of 2 seeds (0) (unknown: 2)." in said
    mixed = seed_claims.turning([one(0, 30), one(1, 11)])
    assert "more than SFT, in some seeds**: intervals apart in 1 of 2 seeds (0)." in mixed
    assert "**R2D2 does not turn the direction more than SFT" in seed_claims.turning([one(0, 11)])
    assert seed_claims.turning([seed(0)]).startswith("**Turn of the direction: not measured**")
    part = seed(3, pair("sft", 0, 50, angle=10), pair("r2d2", 0, 50, angle=30))
    assert (
        "Between neighbours, beside SFT: 50 → 100 in the one seed measured (unknown: 3)."
        in seed_claims.turning([one(0, 30), part])
    )


def test_rank_flags() -> None:
    flat, grown = seed(0, pair("r2d2", 0, 50)), seed(1, pair("r2d2", 0, 50, flag="expansion"))
    assert seed_claims.rank([flat]) == "**No change of rank is flagged** in any of 1 verdicts."
    assert "in 1 of 2 verdicts: expansion (r2d2 0 → 50, seed 1)" in seed_claims.rank([flat, grown])
    assert seed_claims.rank([seed(0)]) == "**Rank: not measured**."


def refusing(step: int, rate: float) -> Seed:
    """R2D2's share of XSTest safe refused at its one anchor; step 0 has .2."""
    return seed(0, rows=behaviour(safe={("base", 0): 0.2, ("r2d2", step): rate}))


def banked(*ranks: float | None) -> Seed:
    """The bank's effective rank at step 0 and at R2D2's anchors 50 and 100."""
    where = [("base", 0), ("r2d2", 50), ("r2d2", 100)]
    rows = [
        {"arm": arm, "step": step, "quantity": "effective_rank_bank", "value": value}
        for (arm, step), value in zip(where, ranks, strict=True)
    ]
    asked = behaviour(direct={("r2d2", 50): 0.3, ("r2d2", 100): 0.4})
    return seed(0, {"rank": rows}, rows=asked)


@pytest.mark.parametrize(
    ("found", "one", "expected"),
    [
        (seed_comparison.closing, closed(0, 0), "agrees"),
        (seed_comparison.closing, closed(0.9, 0.9), "disagrees"),
        (seed_comparison.closing, seed(0), None),
        (seed_comparison.reopening(FIXED), closed(0, 0.3), "agrees"),
        (seed_comparison.reopening(ADAPTIVE), attacked(0.5, 0.0, ("sft", "r2d2")), "open"),
        (seed_comparison.reopening(ADAPTIVE), closed(0, 0), None),
        (seed_comparison.over_refusal, refusing(50, 0.9), "agrees"),
        (seed_comparison.over_refusal, refusing(50, 0.2), "disagrees"),
        (seed_comparison.over_refusal, refusing(10, 0.2), "open"),  # nothing was published of that step
        (seed_comparison.relocation("r2d2"), seed(0, pair("r2d2", 0, 500, place="moved")), "agrees"),
        (seed_comparison.relocation("r2d2"), seed(0, pair("r2d2", 0, 500)), "disagrees"),
        (seed_comparison.relocation("r2d2"), seed(0, pair("r2d2", 0, 100)), "open"),  # too early to tell
        (seed_comparison.relocation("r2d2"), seed(0, pair("r2d2", 0, 500), pair("r2d2", 0, 250, place="x")), "open"),
        (seed_comparison.rank, seed(0, pair("r2d2", 0, 500), pair("sft", 0, 500)), "agrees"),
        (seed_comparison.rank, seed(0, pair("r2d2", 0, 500, flag="expansion"), pair("sft", 0, 500)), "disagrees"),
        (seed_comparison.rank, seed(0, pair("r2d2", 0, 500)), "open"),
        (seed_comparison.rank, seed(0), None),
        (seed_comparison.bank_grows, banked(3.1, 8.0, 2.9), "agrees"),  # the last anchor counts
        (seed_comparison.bank_grows, banked(3.1, 2.9, 8.0), "disagrees"),
        (seed_comparison.bank_grows, banked(3.1, 8.0, None), "disagrees"),  # … that has one
        (seed_comparison.bank_grows, banked(None, 8.0, 9.0), None),
        (seed_comparison.bank_grows, seed(0), None),
        (seed_comparison.drift, seed(0, pair("r2d2", 0, 500, angle=10), pair("sft", 0, 500, angle=20)), "agrees"),
        (seed_comparison.drift, seed(0, pair("r2d2", 0, 500, angle=20), pair("sft", 0, 500, angle=10)), "disagrees"),
        (seed_comparison.drift, seed(0, pair("r2d2", 0, 500), pair("sft", 0, 500)), "open"),
        (seed_comparison.drift, seed(0, pair("r2d2", 0, 500)), None),
    ],
)  # fmt: skip
def test_each_pattern_of_the_publication(found: Any, one: Seed, expected: str | None) -> None:
    assert found(one) == expected


def test_agreement_with_the_publication_is_counted() -> None:
    seeds = [closed(0, 0), closed(0.9, 0.9, 1), seed(2)]
    said = seed_comparison.judged(seeds, seed_comparison.closing)
    assert said == "agrees in 1 of 3 (0), disagrees in 1 of 3 (1), not measured in 1 of 3 (2)"
    assert seed_comparison.judged(seeds[:1], seed_comparison.closing) == "agrees in the one seed"
    assert (
        seed_comparison.judged([seeds[0], closed(0, 0, 1)], seed_comparison.closing) == "agrees in both seeds"
    )
    assert seed_comparison.judged([seed(0), seed(1)], seed_comparison.closing) == "not measured"


def test_the_cards_time_is_shared_by_all_arms_of_all_seeds() -> None:
    seeds = [
        Seed(
            f"s-{n}",
            n,
            {"behaviour": behaviour(direct={("sft", 50): 0.7, ("r2d2", 50): 0.2})},
            {**PROVENANCE, "unfinished": ["a"]},
        )
        for n in range(2)
    ]
    seeds = [
        *(replace(one, provenance=one.provenance | {"device": "two cards of one kind"}) for one in seeds),
        replace(
            seeds[0], number=2, provenance=seeds[0].provenance | {"device": "one card", "unfinished": []}
        ),
    ]
    assert seed_doubts.card_time(seeds) == (
        "seeds 0, 1, on two cards: 0.03 card-hours for 4 arms, 0.5 card-minutes each, with 2 of 8 stages left undone; "
        "seed 2, on one card: 0.02 card-hours for 2 arms, 0.5 card-minutes each, with none of 3 stages left undone"
    )


def test_a_pair_whose_place_was_not_measured_is_neither_moved_nor_open() -> None:
    turned = {"drift": pair("r2d2", 0, 250)["drift"][:2]}  # the angle alone, as of pairs without a verdict
    one = seed(0, turned, pair("r2d2", 0, 500))
    assert [one.placed("r2d2", (0, step)) for step in (250, 500)] == [False, True]
    assert "place not measured in 1 of 2, unchanged in 1 of 2" in seed_claims.control([one])
    assert seed_comparison.relocation("r2d2")(one) == "disagrees"


def test_controls_turn_beside_r2d2_where_they_are_there() -> None:
    asked = behaviour(direct={("sft", 50): 0.7, ("r2d2", 50): 0.3, ("refusal_sft", 50): 0.3})
    angles = {"sft": 10, "r2d2": 30, "refusal_sft": 20}
    one = seed(0, *(pair(arm, 0, 50, angle=angle) for arm, angle in angles.items()), rows=asked)
    assert "More than `refusal_sft` in the one seed measured." in seed_claims.turning([one])
    (last,) = [doubt for doubt in seed_doubts.doubts([one]) if "any training toward refusal" in doubt]
    assert "`refusal_sft` turns by 20.0° [19.0°, 21.0°]; without `r2d2_static` this section" in last
