import itertools
import math

import numpy as np
import pytest
from scipy.stats import multinomial

from caryatid.causal.transfer import transfer, transfer_ratio
from caryatid.errors import InputError
from caryatid.stats import wilson


def bools(text: str) -> np.ndarray:
    return np.array([char == "x" for char in text])


def test_transfer_is_the_share_of_refusals_removed() -> None:
    found = transfer(bools("xxxx.."), bools("x...x."))
    assert found == wilson(3, 4)  # a refusal that appears under the carrier is none that was removed
    assert math.isnan(transfer(bools("...."), bools("xx..")).value)
    with pytest.raises((InputError, TypeError)):
        transfer(bools("x."), bools("x"))


def test_the_ratio_compares_with_the_anchors_own_carrier() -> None:
    refused = bools("x" * 20 + "." * 4)
    own, old = bools("." * 24), bools("x" * 15 + "." * 9)
    found = transfer_ratio(refused, old, own)
    assert found.ratio.value == pytest.approx(0.25)
    assert found.reason is None
    sd = math.sqrt(0.25 * 0.75 / 20)
    assert found.ratio.lo == pytest.approx(0.25 - 1.645 * sd, abs=0.05)  # one-sided 95 %
    assert found.ratio.hi == pytest.approx(0.25 + 1.645 * sd, abs=0.05)


@pytest.mark.parametrize(
    ("refusals", "replaced", "controls", "kept"),
    [
        (2, False, False, False),
        (3, False, True, False),
        (5, False, True, False),
        (6, True, True, False),
        (10, True, True, False),
        (11, True, True, True),
    ],
)
def test_few_refusals_settle_nothing_although_all_of_them_agree(
    refusals: int, replaced: bool, controls: bool, kept: bool
) -> None:
    """With none of n removed the upper bound is z²/n, with all of them the lower one n/(n + z²)."""
    refused, all_gone, none_gone = bools("x" * refusals), bools("." * refusals), bools("x" * refusals)
    nothing = transfer_ratio(refused, none_gone, all_gone).ratio
    everything = transfer_ratio(refused, all_gone, all_gone).ratio
    z2 = 1.6448536269514722**2
    assert (nothing.value, nothing.lo, nothing.hi) == (0, 0, pytest.approx(z2 / refusals))
    assert (everything.value, everything.lo) == (1, pytest.approx(refusals / (refusals + z2)))
    assert (nothing.hi < 0.5) == replaced
    assert (everything.lo >= 0.5) == controls
    assert (everything.lo > 0.8) == kept


@pytest.mark.parametrize("refusals", [4, 6, 12])
def test_at_each_threshold_a_ratio_is_decided_wrongly_in_one_of_fourteen_cases_at_most(refusals: int) -> None:
    """All outcomes of n refusals, weighted with their probability; the bounds are meant to err in one of twenty.

    The true ratio is at the threshold, or just below it; what a's carrier removes is among what b's own does, or
    independent of it.
    """
    outcomes = [c for c in itertools.product(range(refusals + 1), repeat=4) if sum(c) == refusals]
    found = []
    for counts in outcomes:
        under_a, under_b = (np.repeat(flags, counts).astype(bool) for flags in ([0, 0, 1, 1], [0, 1, 0, 1]))
        found.append(transfer_ratio(np.ones(refusals, bool), under_a, under_b).ratio)
    lo, hi = np.array([one.lo for one in found]), np.array([one.hi for one in found])
    for true, decided in ((0.5, hi < 0.5), (0.49, lo >= 0.5), (0.8, lo > 0.8)):
        for own, nested in itertools.product((0.7, 0.95), (True, False)):
            both = true * own * (1 if nested else own)
            shares = [both, true * own - both, own - both, 1 - own - true * own + both]
            wrong = multinomial.pmf(np.array(outcomes), refusals, shares)[decided].sum()
            assert wrong < 1 / 14, (true, own, nested)


@pytest.mark.parametrize(
    ("refused", "own", "reason"),
    [("......", "......", "refuses nothing"), ("xxxxxx", "xxxxxx", "removes no refusal")],
)
def test_undefined_ratios_say_why(refused: str, own: str, reason: str) -> None:
    found = transfer_ratio(bools(refused), bools("......"), bools(own))
    assert all(math.isnan(value) for value in found.ratio)
    assert reason in (found.reason or "")


def test_a_single_refusal_removed_leaves_the_ratio_open() -> None:
    found = transfer_ratio(bools("x....."), bools("x....."), bools("......"))
    assert found.reason is None
    assert found.ratio.lo == 0 < 2 < found.ratio.hi


def test_ratio_needs_the_same_prompts() -> None:
    with pytest.raises((InputError, TypeError)):
        transfer_ratio(bools("xx"), bools("x"), bools("xx"))
