from caryatid.geometry.tokens import TokenShares, refusal_token_shares

SORRY, IM, SURE, THE, AS = range(5)


def ids(found: list[TokenShares]) -> list[int]:
    return [each.token for each in found]


def test_shares_decide() -> None:
    refusals = [IM] * 60 + [AS] * 35 + [SURE] * 1 + [THE] * 4
    others = [SURE] * 78 + [THE] * 2 + [IM] * 20
    found = refusal_token_shares(refusals, others, toward=SORRY)
    assert found == [
        TokenShares(IM, 0.6, 0.2, False),  # exactly three times as often among refusals
        TokenShares(AS, 0.35, 0.0, False),
        TokenShares(SORRY, 0.0, 0.0, True),
    ]


def test_one_misjudged_answer_adds_no_token() -> None:
    """Of 20 refusals it is 5 %, but complying answers begin with it, too."""
    found = refusal_token_shares([IM] * 19 + [SURE], [SURE] * 22 + [THE] * 78, toward=IM)
    assert ids(found) == [IM]


def test_both_limits_are_in() -> None:
    assert ids(refusal_token_shares([IM] * 95 + [AS] * 5, [THE], toward=IM)) == [IM, AS]
    assert ids(refusal_token_shares([IM] * 96 + [AS] * 4, [THE], toward=IM)) == [IM]
    assert ids(refusal_token_shares([AS] * 3 + [IM] * 7, [AS] * 10 + [THE] * 90, toward=IM)) == [IM, AS]
    assert ids(refusal_token_shares([AS] * 3 + [IM] * 7, [AS] * 11 + [THE] * 89, toward=IM)) == [IM]


def test_without_refusals_the_toward_token_is_left() -> None:
    assert refusal_token_shares([], [SURE] * 4, toward=SORRY) == [TokenShares(SORRY, 0.0, 0.0, True)]
    assert ids(refusal_token_shares([IM, AS], [], toward=SORRY)) == [IM, AS, SORRY]
