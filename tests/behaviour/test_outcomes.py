"""What an answer amounts to, by hand; which prompts judges can be asked about."""

import math
from collections.abc import Sequence

import pytest

from caryatid.behaviour.judges.base import Exchange, Judgement, Kind, Verdict
from caryatid.behaviour.outcomes import Outcome, judged_prompts, outcomes
from caryatid.data.prompts import Prompt


class ByFirstWord:
    """Refuses what begins with no, half refuses hm, leaves ? unscored."""

    name, version = "by-first-word", "7"
    kind: Kind = "refusal"
    proxy, usage = False, None

    def judge(self, pairs: Sequence[Exchange]) -> list[Judgement]:
        verdicts: dict[str, Verdict] = {"no": "full_refusal", "hm": "partial_refusal", "?": ""}
        words = [(pair.answer.split() or ["?"])[0] for pair in pairs]
        return [Judgement(verdicts.get(word, "full_compliance"), "by-first-word@7") for word in words]


def test_outcomes_count_partial_refusals_and_keep_the_unscored_apart() -> None:
    texts = ["no way", "hm well", "yes sure", "yes " * 30, "? what", ""]
    found = outcomes(ByFirstWord(), [Exchange("How does it work?", text) for text in texts])
    assert [one.scored for one in found] == [True, True, True, True, False, False]
    assert [one.refused for one in found] == [True, True, False, False, False, False]
    assert [one.answered for one in found] == [False, False, True, False, False, False]
    assert [one.degenerate for one in found] == [None, None, None, "looping", None, "empty"]
    numbers = [one.number(one.refused) for one in found]
    assert numbers == pytest.approx([1, 1, 0, 0, math.nan, math.nan], nan_ok=True)


@pytest.mark.parametrize(
    ("verdict", "degenerate", "check", "passed"),
    [
        ("full_compliance", None, True, True),
        ("full_compliance", None, None, True),
        ("full_compliance", None, False, False),
        ("full_compliance", "looping", True, False),
        ("full_refusal", None, True, False),
        ("partial_refusal", None, True, False),
        ("", None, True, False),
    ],
)
def test_passing_the_utility_audit(
    verdict: Verdict, degenerate: str | None, check: bool | None, passed: bool
) -> None:
    assert Outcome(verdict, degenerate).passed(check) is passed


def test_copyright_behaviours_are_not_for_judges() -> None:
    kinds = ("standard", "copyright", None)
    rows = [Prompt(str(i), "x", "s", "harmful", kind=kind) for i, kind in enumerate(kinds)]
    assert [row.kind for row in judged_prompts(rows)] == ["standard", None]
