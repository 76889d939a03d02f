"""Results of stages on disk: whatever a result may hold comes back as it was, and damage is one line."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from caryatid.artifacts import StageFolder
from caryatid.errors import InputError
from caryatid.results import ARRAYS, PLAIN, load_result, save_result


class Bounds(NamedTuple):
    value: float
    lo: float
    note: str | None = None


class Role(Enum):
    TRAIN = "training"
    EVALUATE = "evaluation"


@dataclass(frozen=True)
class Inner:
    name: str
    bounds: Bounds
    direction: Float[Tensor, "d"]


@dataclass(frozen=True)
class Whole:
    number: float
    count: int
    flag: bool
    text: str | None
    role: Role
    inner: Inner
    maybe: Inner | None
    each: tuple[Inner, ...]
    by_name: dict[str, Inner]
    by_layer: dict[int, float]
    pair: tuple[str, ...]
    draws: Float[np.ndarray, "draws"]
    flags: Bool[np.ndarray, "a b"]
    rows: tuple[dict[str, Any], ...]
    read_only: Mapping[str, Bounds]


def inner(name: str, value: float = 0.5) -> Inner:
    return Inner(name, Bounds(value, -math.inf), torch.tensor([value, 2.0, -1.0]))


def whole(**changed: Any) -> Whole:
    given: dict[str, Any] = {
        "number": 0.1,
        "count": 3,
        "flag": True,
        "text": None,
        "role": Role.EVALUATE,
        "inner": inner("a", math.nan),
        "maybe": None,
        "each": (inner("b"), inner("c", math.inf)),
        "by_name": {"x": inner("d"), "y z": inner("e")},
        "by_layer": {3: 0.5, -1: math.nan},
        "pair": ("sft@1", "ä"),
        "draws": np.array([0.25, math.nan, math.inf]),
        "flags": np.array([[True, False], [False, False]]),
        "rows": ({"layer": 3, "value": math.nan, "reason": None}, {"layer": 4, "value": 0.5}),
        "read_only": {"p": Bounds(1.0, 2.0, "why")},
    }
    return Whole(**{**given, **changed})


@pytest.fixture
def folder(tmp_path: Path) -> StageFolder:
    return StageFolder("toy", "k", tmp_path, {})


def again(result: Any, folder: StageFolder) -> Any:
    save_result(result, folder)
    return load_result(type(result), folder)


def same(one: Any, two: Any) -> bool:
    """Equal in type and value; NaN equals NaN."""
    if type(one) is not type(two):
        return False
    if isinstance(one, Tensor):
        return one.dtype == two.dtype and torch.equal(one.nan_to_num(7e9), two.nan_to_num(7e9))
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and np.array_equal(one, two, equal_nan=one.dtype.kind == "f")
    if isinstance(one, Inner | Whole):
        return all(same(value, getattr(two, name)) for name, value in vars(one).items())
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(value, two[key]) for key, value in one.items())
    if isinstance(one, tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two or (one != one and two != two))


def test_everything_comes_back_as_it_was_but_nan_in_rows_which_is_null(folder: StageFolder) -> None:
    given = whole(maybe=inner("f"))
    found = again(given, folder)
    assert found.rows == ({"layer": 3, "value": None, "reason": None}, {"layer": 4, "value": 0.5})
    assert same(found, whole(maybe=inner("f"), rows=found.rows))
    assert isinstance(found.inner.bounds, Bounds)
    assert math.isnan(found.inner.bounds.value)
    assert found.each[1].bounds == Bounds(math.inf, -math.inf, None)
    assert list(found.by_layer) == [3, -1]
    assert again(whole(), folder).maybe is None


def test_the_text_is_json_without_nan_and_arrays_are_beside_it(folder: StageFolder) -> None:
    save_result(whole(), folder)

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    stored = json.loads(folder.file(PLAIN).read_text(), parse_constant=refuse)
    assert stored["inner"]["bounds"] == ["NaN", "-Infinity", None]
    assert (stored["count"], stored["role"], stored["by_layer"]) == (3, "evaluation", {"3": 0.5, "-1": "NaN"})
    assert set(folder.read_tensors(ARRAYS)) == {
        ".inner.direction", ".each.0.direction", ".each.1.direction", ".by_name.x.direction",
        ".by_name.y z.direction", ".draws", ".flags",
    }  # fmt: skip


def test_numbers_of_other_libraries_are_plain_and_views_are_whole(folder: StageFolder) -> None:
    grid = np.arange(6.0).reshape(2, 3)
    found = again(whole(number=np.float64(math.nan), count=np.int64(2), draws=grid[:, 1]), folder)
    assert (math.isnan(found.number), found.count) == (True, 2)
    assert type(found.count) is int
    assert found.draws.tolist() == [1.0, 4.0]


def test_a_result_without_arrays_has_one_file(folder: StageFolder) -> None:
    @dataclass(frozen=True)
    class Small:
        value: float

    save_result(Small(1), folder)
    assert [path.name for path in folder.path.iterdir()] == [PLAIN]
    assert type(load_result(Small, folder).value) is float


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "{",
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace('"count"', '"counts"'),
        lambda text: text.replace('"evaluation"', '"elsewhere"'),
        lambda text: text.replace('"NaN"', '"nan"'),
        lambda text: text.replace('".draws"', '".drawn"'),
        lambda text: text.replace('"by_layer": {', '"by_layer": {"x": 1,'),
    ],
)
def test_damage_is_one_line_that_names_the_file(folder: StageFolder, damage: Any) -> None:
    save_result(whole(), folder)
    path = folder.file(PLAIN)
    before = path.read_text()
    path.write_text(damage(before))
    assert path.read_text() != before
    with pytest.raises(InputError) as caught:
        load_result(Whole, folder)
    assert str(path) in str(caught.value)
    assert "Delete the file's folder and run again." in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"xx", None])
def test_a_damaged_or_missing_file_of_arrays_is_one_line_too(
    folder: StageFolder, content: bytes | None
) -> None:
    save_result(whole(), folder)
    if content is None:
        folder.file(ARRAYS).unlink()
    else:
        folder.file(ARRAYS).write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_result(Whole, folder)
    assert str(folder.path) in str(caught.value)
    assert "\n" not in str(caught.value)
