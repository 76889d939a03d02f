"""The distinct places of two anchors' carriers, as the table `shifts` counts them."""

import math

import numpy as np

from caryatid.study.decision import Places
from caryatid.study.tables.shifts import COLUMNS, shift_rows


def test_draws_are_counted_by_place_and_a_missing_carrier_is_null() -> None:
    depth = np.array([0.5, 0.5, math.nan, 0.25])
    other = np.array([0.25, 0.25, 0.25, 0.25])
    places = Places(depth, other, depth, other, depth, other, np.arange(4))
    rows = shift_rows(places)
    assert [row["draws"] for row in rows] == [2, 1, 1]
    assert rows[0] == {**dict.fromkeys(COLUMNS[::2], 0.5), **dict.fromkeys(COLUMNS[1::2], 0.25), "draws": 2}
    assert {row["depth_from"] for row in rows[1:]} == {0.25, None}


def test_places_that_differ_in_the_last_bits_are_one() -> None:
    centre = np.array([0.1 + 0.2, 0.3, 0.3 + 1e-6])
    flat = np.full(3, 0.5)
    rows = shift_rows(Places(flat, flat, centre, flat, flat, flat, np.arange(3)))
    assert [row["draws"] for row in rows] == [2, 1]
