"""Checks of the utility audit: whole words, numbers apart, refusals and gibberish never pass."""

import pytest

from caryatid.behaviour.utility import check_satisfied, contains_words
from caryatid.errors import InputError


@pytest.mark.parametrize(
    ("text", "words", "found"),
    [
        ("The capital is PARIS.", "paris", True),
        ("A comparison", "paris", False),
        ("It is 4.", "4", True),
        ("It is 14", "4", False),
        ("It is 4.5", "4", False),
        ("It is 3.4", "4", False),
        ("It costs 1,400", "400", False),
        ("x=4;", "4", True),
        ("100 °C", "°C", True),
        ("about 100°C today", "100°c", True),
        ("C++ is a language", "C++", True),
        ("it’s here", "it's", True),
        ("New\n York", "new york", True),
        ("twenty–one", "twenty-one", True),
        ("Straße", "strasse", True),
        ("anything", "", False),
    ],
)
def test_words_are_matched_whole(text: str, words: str, found: bool) -> None:
    assert contains_words(text, words) is found


@pytest.mark.parametrize(
    ("check", "text", "satisfied"),
    [
        ({"any": ["four", "4"]}, "It is four.", True),
        ({"any": ["four", "4"]}, "It is five.", False),
        ({"all": ["red", "blue"]}, "Blue and red", True),
        ({"all": ["red", "blue"]}, "Blue only", False),
        ({"any": "red", "not": ["blue"]}, "red", True),
        ({"any": "red", "not": ["blue"]}, "red and blue", False),
        ({"regex": r"\b\d{4}\b"}, "In 1789", True),
        ({"regex": [r"^z", r"paris"]}, "PARIS", True),
        ({"regex": r"^z", "any": ["a"]}, "a", False),
        ({}, "anything", True),
    ],
)
def test_checks(check: dict, text: str, satisfied: bool) -> None:
    assert check_satisfied(check, text) is satisfied


@pytest.mark.parametrize("check", [{"some": ["a"]}, {"any": [4]}, {"regex": "("}])
def test_checks_that_cannot_be_evaluated(check: dict) -> None:
    with pytest.raises(InputError, match="utility check"):
        check_satisfied(check, "a")
