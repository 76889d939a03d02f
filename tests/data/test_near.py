"""Near-duplicates: the rule, and the index against a comparison of all pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caryatid.data.near import Fingerprint, NearIndex, are_near, normalise, similarity


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("How do I kill a Python process?", "how do i kill a python process"),
        ("What’s  the\nbest WAY", "whats the best way"),
        ("ｆｕｌｌ width", "full width"),
        ("Straße", "STRASSE"),
    ],
)
def test_normalisation_ignores_case_spacing_punctuation_and_width(a, b):
    assert normalise(a) == normalise(b)


def test_text_without_words_keeps_its_signs():
    assert normalise(" ?! ") == "?!"
    assert normalise("+") != normalise("-")


def test_similarity_is_jaccard():
    assert similarity(frozenset("abc"), frozenset("bcd")) == 2 / 4
    assert similarity(frozenset(), frozenset()) == 1.0


def test_inserted_words_are_near_but_replaced_ones_are_not():
    base = frozenset(
        ["give", "instructions", "for", "how", "to", "rob", "a", "bank", "and", "get", "away", "with", "it"]
    )
    assert are_near(base, base | {"at", "gunpoint"})  # 13/15, contained
    swapped = frozenset(
        [
            "convince",
            "people",
            "to",
            "make",
            "a",
            "cleaning",
            "product",
            "by",
            "mixing",
            "bleach",
            "and",
            "vinegar",
        ]
    )
    assert not are_near(swapped, (swapped - {"vinegar"}) | {"ammonia"})  # 11/13, neither contained
    assert not are_near(frozenset("ab"), frozenset("abc"))  # contained, but 2/3
    assert are_near(frozenset("abcdef"), frozenset("abcdefghij"))  # 6/10, contained, and long
    assert not are_near(frozenset("abcdef"), frozenset("abcdefghijk"))  # 6/11
    assert not are_near(frozenset("abcde"), frozenset("abcdefgh"))  # 5/8, but short


def brute_force(prints: list[Fingerprint], query: Fingerprint) -> set[int]:
    def close(a: str, b: str) -> bool:
        x, y = set(a.split()), set(b.split())
        jaccard = len(x & y) / len(x | y) if x | y else 1.0
        enough = 0.6 if min(len(x), len(y)) >= 6 else 0.75
        return a == b or jaccard >= 0.9 or (jaccard >= enough and (x <= y or y <= x))

    def agree(a: str, b: str) -> bool:
        return a == b if not a or not b else close(a, b)

    return {
        i for i, one in enumerate(prints) if close(one.text, query.text) and agree(one.context, query.context)
    }


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h"]), min_size=0, max_size=9).map(
    " ".join
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=25))
def test_index_finds_exactly_what_comparing_all_pairs_finds(pairs):
    prints = [Fingerprint.of(text, context or None) for text, context in pairs]
    index = NearIndex.over(prints)
    for one in prints:
        index.add(one)
    for query in prints:
        assert {match.item for match in index.matches(query)} == brute_force(prints, query)


def test_index_on_long_texts_with_few_words_changed():
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(60):
        words = rng.integers(0, 300, size=40)
        texts.append(" ".join(f"w{w}" for w in words))
        for changes in (1, 2, 4, 8):
            changed = words.copy()
            changed[rng.choice(40, changes, replace=False)] = rng.integers(300, 400, size=changes)
            texts.append(" ".join(f"w{w}" for w in changed))
        texts.append(" ".join(f"w{w}" for w in words[:33]))
    prints = [Fingerprint.of(text, None) for text in texts]
    index = NearIndex.over(prints)
    for one in prints:
        index.add(one)
    found = [{match.item for match in index.matches(one)} for one in prints]
    assert found == [brute_force(prints, one) for one in prints]
    assert any(len(row) > 1 for row in found)


def test_matches_come_most_similar_first():
    prints = [Fingerprint.of(text, None) for text in ("a b c d e f g h i j k", "a b c d e f g h i j", "x")]
    index = NearIndex.over(prints)
    for one in prints:
        index.add(one)
    assert [match.item for match in index.matches(prints[1])] == [1, 0]
