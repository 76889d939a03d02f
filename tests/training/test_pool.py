"""The pool: draws without replacement, restarts, ages, and a state that resumes exactly."""

import json

import pytest

from caryatid.data.prompts import Prompt
from caryatid.errors import InputError
from caryatid.training.pool import Pool


def _behaviours(count: int = 6) -> list[Prompt]:
    return [
        Prompt(
            id=f"b{i}",
            text=f"do thing {i}",
            set_name="pool",
            label="harmful",
            targets=(f"Sure {i}", f"Here {i}"),
        )
        for i in range(count)
    ]


def test_draws_are_distinct_and_repeatable() -> None:
    one, two = (
        Pool(_behaviours(), 5, seed=3, suffix_length=4),
        Pool(_behaviours(), 5, seed=3, suffix_length=4),
    )
    for _ in range(20):
        drawn = one.draw(3)
        assert len(set(drawn)) == 3
        assert drawn == two.draw(3)
    assert sorted(one.draw(99)) == list(range(5))


def test_a_pool_larger_than_the_behaviours_uses_all_of_them() -> None:
    pool = Pool(_behaviours(4), 10, seed=0, suffix_length=4)
    assert {case.behaviour for case in pool.entries} == {0, 1, 2, 3}
    for case in pool.entries:
        assert case.target in pool.behaviours[case.behaviour].targets


def test_restart_renews_a_fifth_and_ages_count_updates() -> None:
    pool = Pool(_behaviours(), 10, seed=1, suffix_length=4)
    for index in range(10):
        pool.put(index, (1, 2, 3))
    for _ in range(4):
        pool.advance()
    assert pool.mean_age == 4
    renewed = pool.restart(0.2)
    assert len(renewed) == 2
    for index, case in enumerate(pool.entries):
        fresh = index in renewed
        assert (case.age == 0) is fresh
        assert (case.suffix_ids == ()) is fresh


def test_the_number_of_restarts_is_rounded_down_as_released() -> None:
    for size, fraction, count in ((8, 0.2, 1), (9, 0.2, 1), (10, 0.3, 3), (100, 0.29, 29), (4, 0.2, 0)):
        assert len(Pool(_behaviours(), size, seed=0, suffix_length=4).restart(fraction)) == count


def test_a_range_of_lengths_is_drawn_for_each_new_case() -> None:
    pool = Pool(_behaviours(), 60, seed=0, suffix_length=(15, 20))
    assert {entry.length for entry in pool.entries} == {15, 16, 17, 18, 19, 20}
    assert {entry.length for entry in Pool(_behaviours(), 6, seed=0, suffix_length=4).entries} == {4}


def test_restarting_nothing_draws_nothing() -> None:
    one, two = (
        Pool(_behaviours(), 5, seed=3, suffix_length=4),
        Pool(_behaviours(), 5, seed=3, suffix_length=4),
    )
    assert one.restart(0.0) == []
    assert one.draw(3) == two.draw(3)


def test_state_round_trips_through_json_exactly() -> None:
    pool = Pool(_behaviours(), 6, seed=2, suffix_length=4)
    pool.put(2, (7, 8))
    pool.draw(2)
    pool.advance()
    other = Pool(_behaviours(), 6, seed=99, suffix_length=4)
    other.load_state_dict(json.loads(json.dumps(pool.state_dict())))
    assert other.entries == pool.entries
    for _ in range(5):
        assert other.draw(3) == pool.draw(3)
        assert other.restart(0.3) == pool.restart(0.3)
        assert other.entries == pool.entries


def test_unusable_behaviours_are_refused() -> None:
    with pytest.raises(InputError, match="no behaviours"):
        Pool([], 3, seed=0, suffix_length=4)
    with pytest.raises(InputError, match="b0"):
        Pool([Prompt(id="b0", text="x", set_name="pool", label="harmful")], 3, seed=0, suffix_length=4)
