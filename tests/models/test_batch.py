import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from caryatid.errors import InputError, MemoryExhaustedError
from caryatid.models.batch import (
    CPU_BATCH_SIZES,
    BackedOff,
    batch_cost,
    left_pad,
    length_sorted_batches,
    plan_batch_sizes,
    right_pad,
    with_backoff,
)
from tiny import tiny_loaded


def test_padding_comes_from_lengths_even_when_the_pad_id_is_a_token() -> None:
    batch = left_pad([[2, 5, 2], [2]], pad_id=2)
    assert batch.ids.tolist() == [[2, 5, 2], [2, 2, 2]]
    assert batch.mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 0, 0]]
    for seqs in ([], [[1], []]):
        with pytest.raises(InputError):
            left_pad(seqs, 0)


def test_padding_on_the_right_leaves_positions_alone() -> None:
    batch = right_pad([[2, 5, 2], [2]], pad_id=2)
    assert batch.ids.tolist() == [[2, 5, 2], [2, 2, 2]]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 1, 2]]
    for seqs in ([], [[1], []]):
        with pytest.raises(InputError):
            right_pad(seqs, 0)


def test_batches_hold_every_row_once_longest_first() -> None:
    lengths = [3, 9, 1, 9, 4, 4, 7]
    batches = length_sorted_batches(lengths, 3)
    assert batches == [[1, 3, 6], [4, 5, 0], [2]]
    assert length_sorted_batches([], 3) == []
    with pytest.raises(InputError):
        length_sorted_batches(lengths, 0)


def _parts(rows: list[int], size: int) -> list[list[list[int]]]:
    """All ways to cut a list into consecutive parts of at most `size`."""
    if not rows:
        return [[]]
    return [[rows[:n], *rest] for n in range(1, min(size, len(rows)) + 1) for rest in _parts(rows[n:], size)]


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=9),
    size=st.integers(1, 9),
    per_batch=st.integers(0, 90),
)
def test_batches_are_parted_where_padding_costs_more(lengths: list[int], size: int, per_batch: int) -> None:
    def cost(batches: list[list[int]]) -> int:
        return sum(len(rows) * max(lengths[row] for row in rows) + per_batch for rows in batches)

    plain = [row for rows in length_sorted_batches(lengths, size) for row in rows]
    parted = length_sorted_batches(lengths, size, per_batch)
    assert [row for rows in parted for row in rows] == plain
    assert max(map(len, parted)) <= size
    assert cost(parted) == min(map(cost, _parts(plain, size)))


def test_one_long_row_pads_no_other_on_a_cpu_alone() -> None:
    lengths = [20] * 5 + [600]
    assert length_sorted_batches(lengths, 8, batch_cost(torch.device("cpu"), 12)) == [[5], [0, 1, 2, 3, 4]]
    assert batch_cost(torch.device("cuda")) is None


def test_backoff_halves_until_it_fits() -> None:
    tried = []

    def work(size: int) -> str:
        tried.append(size)
        if size > 3:
            raise torch.OutOfMemoryError("out of memory")
        return "done"

    assert with_backoff(work, 20) == BackedOff("done", 2)
    assert tried == [20, 10, 5, 2]


def test_backoff_gives_up_at_one_and_lets_bugs_through() -> None:
    def never(size: int) -> None:
        raise torch.OutOfMemoryError("out of memory")

    def bug(size: int) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(MemoryExhaustedError, match="batch size 1"):
        with_backoff(never, 4)
    with pytest.raises(RuntimeError, match="shapes"):
        with_backoff(bug, 4)


def test_cpu_sizes_are_fixed() -> None:
    assert plan_batch_sizes(tiny_loaded(), 100) == plan_batch_sizes(tiny_loaded(), 4000) == CPU_BATCH_SIZES
