"""Which tokens mean that a refusal begins (protocol §5)."""

from collections.abc import Iterable, Sequence


def first_token_counts(answers: Iterable[tuple[Sequence[int], bool]], toward: int) -> dict[int, int]:
    """First tokens of refusals with how many refusals each begins, by id; the toward text's first token among them.

    Args:
        answers: token ids of each answer, and whether it is a refusal. toward: first token of the toward text.
    """
    counts: dict[int, int] = {toward: 0}
    for ids, refused in answers:
        if refused and ids:
            counts[ids[0]] = counts.get(ids[0], 0) + 1
    return dict(sorted(counts.items()))
