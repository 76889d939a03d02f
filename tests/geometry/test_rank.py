import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from caryatid.errors import DataMissingError, InputError, NumericalError
from caryatid.geometry.rank import (
    SiteActivations,
    bank_ranks,
    compare_ranks,
    effective_rank,
    participation_ratio,
    rank_figures,
    stable_rank,
)
from caryatid.geometry_files import metrics_file

MEASURES = (effective_rank, participation_ratio, stable_rank)


def by_definition(matrix: np.ndarray) -> tuple[float, float, float]:
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    shares = values[values > 0] / values.sum()
    effective = math.exp(-float((shares * np.log(shares)).sum()))
    power = values**2
    return effective, power.sum() ** 2 / (power**2).sum(), power.sum() / power.max()


def random_matrix(seed: int, shape: tuple[int, int] = (7, 20)) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(7, 20), (20, 7), (1, 9), (9, 1)])
def test_figures_equal_their_definitions(shape: tuple[int, int]) -> None:
    matrix = random_matrix(0, shape)
    np.testing.assert_allclose(rank_figures(matrix), by_definition(matrix.numpy()), rtol=1e-12)
    normed = matrix.numpy() / np.linalg.norm(matrix.numpy(), axis=1, keepdims=True)
    np.testing.assert_allclose(rank_figures(matrix, unit_norm=True), by_definition(normed), rtol=1e-12)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (torch.eye(5), (5.0, 5.0, 5.0)),
        (torch.ones(4, 3), (1.0, 1.0, 1.0)),
        (torch.tensor([[2.0, 5.0, 1.0]]), (1.0, 1.0, 1.0)),
        (torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), (2.0, 2.0, 2.0)),
        # singular values 2 and 1
        (torch.diag(torch.tensor([2.0, 1.0])), (math.exp(math.log(3) - 2 / 3 * math.log(2)), 25 / 17, 1.25)),
        # rank 2 of 3: the third row is the sum of the others
        (torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0]]), by_definition(np.diag([math.sqrt(3), 1.0]))),
    ],
    ids=["identity", "identical rows", "one row", "zero row", "two to one", "rank-deficient"],
)
def test_hand_made(matrix: torch.Tensor, expected: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(rank_figures(matrix), expected, rtol=1e-7)


def test_unit_norm_ignores_lengths_and_zero_rows() -> None:
    stretched = torch.diag(torch.tensor([100.0, 1.0, 1e-3]))
    assert effective_rank(stretched) < 1.1
    assert effective_rank(stretched, unit_norm=True) == pytest.approx(3)
    with_zero = torch.cat([stretched, torch.zeros(2, 3)])
    assert effective_rank(with_zero, unit_norm=True) == pytest.approx(3)


def test_extreme_scales_neither_overflow_nor_vanish() -> None:
    for scale in (1e-200, 1e200):
        np.testing.assert_allclose(
            rank_figures(random_matrix(1) * scale), rank_figures(random_matrix(1)), rtol=1e-9
        )


def test_zeros_have_no_rank_and_bad_matrices_are_errors() -> None:
    assert all(math.isnan(value) for value in rank_figures(torch.zeros(3, 4)))
    with pytest.raises(InputError, match="no matrix"):
        effective_rank(torch.zeros(0, 4))
    with pytest.raises(NumericalError):
        stable_rank(torch.tensor([[1.0, torch.nan]]))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-6, 1e6))
def test_invariances_and_order(seed: int, scale: float) -> None:
    matrix = random_matrix(seed, (4, 6))
    turn = torch.linalg.qr(random_matrix(seed + 1, (6, 6))).Q
    mix = torch.linalg.qr(random_matrix(seed + 2, (4, 4))).Q
    for measure in MEASURES:
        value = measure(matrix)
        assert 1 - 1e-9 <= value <= 4 + 1e-9
        assert measure(scale * matrix @ turn) == pytest.approx(value, rel=1e-9)
        assert measure(mix @ matrix) == pytest.approx(value, rel=1e-9)  # raw figures: also of the rows
    assert stable_rank(matrix) <= participation_ratio(matrix) + 1e-9 <= effective_rank(matrix) ** 2 + 1e-9


def planted(n: int, spread: float, seed: int, noise: float = 0.3) -> tuple[SiteActivations, list[str]]:
    """Four categories whose directions share one axis and differ along an axis of their own by `spread`."""
    generator = np.random.default_rng(seed)
    labels = [str(i % 4) for i in range(n)]
    harmful = generator.normal(size=(n, 24)) * noise
    harmful[:, 0] += 3
    for row, label in enumerate(labels):
        harmful[row, 1 + int(label)] += spread
    harmless = generator.normal(size=(n, 24)) * noise
    return SiteActivations(torch.tensor(harmful), torch.tensor(harmless)), labels


def test_comparison_sees_a_planted_second_dimension_and_not_a_mere_rotation() -> None:
    narrow, labels = planted(32, 0.2, seed=0)
    wide, _ = planted(32, 3.0, seed=0)
    grown = compare_ranks(narrow, wide, labels)["effective_rank"]
    assert grown.difference.lo > 0
    assert grown.difference.value == pytest.approx(grown.b.value - grown.a.value)
    turn = torch.linalg.qr(random_matrix(5, (24, 24))).Q
    turned = SiteActivations(narrow.harmful @ turn, narrow.harmless @ turn)
    same = compare_ranks(narrow, turned, labels)["effective_rank"].difference
    assert same.value == pytest.approx(0, abs=1e-9)
    assert 0 < same.hi - same.lo < 1e-5  # the same prompts are left out at both anchors: the noise cancels


def test_point_estimates_are_the_effective_rank_of_category_directions() -> None:
    site, labels = planted(12, 1.0, seed=1)
    means = np.stack([site.harmful.numpy()[[i for i in range(12) if labels[i] == c]].mean(0) for c in "0123"])
    rows = means - site.harmless.numpy().mean(0)
    normed = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    found = compare_ranks(site, site, labels)["effective_rank"].a
    assert found.value == pytest.approx(by_definition(normed)[0], rel=1e-9)
    assert found.lo < found.value < found.hi


def test_categories_of_one_prompt_are_left_out_by_name() -> None:
    site, labels = planted(9, 1.0, seed=2)
    labels[0] = "alone"
    found = compare_ranks(site, site, labels)["effective_rank"]
    assert found.left_out == ("alone",)
    kept = SiteActivations(site.harmful[1:], site.harmless)
    assert found.a.value == pytest.approx(compare_ranks(kept, kept, labels[1:])["effective_rank"].a.value)
    nothing = compare_ranks(site, site, [str(i) for i in range(9)])["effective_rank"]
    assert math.isnan(nothing.difference.value)
    assert len(nothing.left_out) == 9


def test_a_single_category_has_rank_one_and_no_difference() -> None:
    site, _ = planted(8, 1.0, seed=3)
    found = compare_ranks(site, planted(8, 3.0, seed=4)[0], ["only"] * 8)["effective_rank"]
    assert found.a.value == pytest.approx(1)
    assert found.difference == pytest.approx((0, -1e-6, 1e-6), abs=1e-12)


def test_other_prompts_are_an_error() -> None:
    site, labels = planted(8, 1.0, seed=3)
    other, _ = planted(12, 1.0, seed=3)
    with pytest.raises(InputError, match="same labelled prompts"):
        compare_ranks(site, other, labels)


def jackknife(values: list[np.ndarray], strata: list[str]) -> np.ndarray:
    """Variance by leaving one out within strata (Tukey 1958), written out."""
    found = np.zeros(3)
    for name in set(strata):
        mine = np.array([v for v, label in zip(values, strata, strict=True) if label == name])
        found += (len(mine) - 1) / len(mine) * ((mine - mine.mean(0)) ** 2).sum(0)
    return found


@pytest.mark.parametrize("unit_norm", [True, False])
def test_intervals_of_all_figures_are_jackknives_over_prompts(unit_norm: bool) -> None:
    site, labels = planted(12, 1.0, seed=1)

    def figures(harmful: np.ndarray, names: list[str], harmless: np.ndarray) -> np.ndarray:
        rows = np.stack([harmful[[n == name for n in names]].mean(0) for name in "0123"]) - harmless.mean(0)
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True) if unit_norm else rows
        return np.array(by_definition(rows))

    up, down = site.harmful.numpy(), site.harmless.numpy()
    kept = [[j for j in range(12) if j != i] for i in range(12)]
    variance = jackknife([figures(up[k], [labels[j] for j in k], down) for k in kept], labels)
    variance += jackknife([figures(up, labels, down[k]) for k in kept], ["all"] * 12)
    half = 1.959963984540054 * np.sqrt(variance)
    found = compare_ranks(site, site, labels, unit_norm=unit_norm)
    for index, (name, value) in enumerate(zip(found, figures(up, labels, down), strict=True)):
        assert found[name].b == pytest.approx((value, value - half[index], value + half[index]), rel=1e-9)
        assert found[name].difference.value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("unit_norm", [True, False])
def test_a_banks_ranks_are_those_of_its_directions_with_jackknife_intervals(unit_norm: bool) -> None:
    generator = np.random.default_rng(0)
    up, down = generator.normal(size=(6, 5, 9)) + 1, generator.normal(size=(7, 5, 9))

    def figures(harmful: np.ndarray, harmless: np.ndarray) -> np.ndarray:
        rows = harmful.mean(0) - harmless.mean(0)
        return np.array(
            by_definition(rows / np.linalg.norm(rows, axis=1, keepdims=True) if unit_norm else rows)
        )

    variance = jackknife([figures(np.delete(up, i, 0), down) for i in range(6)], ["all"] * 6)
    variance += jackknife([figures(up, np.delete(down, i, 0)) for i in range(7)], ["all"] * 7)
    half = 1.959963984540054 * np.sqrt(variance)
    found = bank_ranks(torch.tensor(up), torch.tensor(down), unit_norm=unit_norm)
    for index, value in enumerate(figures(up, down)):
        expected = (value, value - half[index], value + half[index])
        assert list(found.values())[index] == pytest.approx(expected, rel=1e-6)
    none = bank_ranks(torch.tensor(up)[:, :0], torch.tensor(down)[:, :0])
    assert all(math.isnan(value) for interval in none.values() for value in interval)
    with pytest.raises(InputError, match="at least 2 prompts"):
        bank_ranks(torch.tensor(up)[:1], torch.tensor(down))


@pytest.mark.slow
def test_coverage_of_the_intervals_of_effective_rank() -> None:
    samples = [planted(32, 1.0, seed) for seed in range(200)]
    found = [compare_ranks(site, site, labels)["effective_rank"].a for site, labels in samples]
    truth = np.mean([interval.value for interval in found])
    covered = np.mean([interval.lo <= truth <= interval.hi for interval in found])
    assert 0.91 <= covered <= 0.99


def test_metrics_file(tmp_path: Path) -> None:
    stack, matrix = random_matrix(0, (3 * 4, 6)).reshape(3, 4, 6), random_matrix(1, (4, 6))
    save_file({"directions": stack}, tmp_path / "stack.safetensors")
    found = metrics_file(tmp_path / "stack.safetensors")
    for index in range(3):
        expected = by_definition(stack[index].numpy())
        got = [found[name][index] for name in ("effective_rank", "participation_ratio", "stable_rank")]
        np.testing.assert_allclose(got, expected, rtol=1e-10)
        assert found["slices"][index]["stable_rank"] == got[2]
    save_file({"one": matrix.float(), "two": matrix[0].clone()}, tmp_path / "two.safetensors")
    both = metrics_file(tmp_path / "two.safetensors", unit_norm=True)["tensors"]
    assert both["two"]["effective_rank"] == pytest.approx(1)
    assert both["one"]["effective_rank"] == pytest.approx(effective_rank(matrix.float(), unit_norm=True))
    json.dumps(both, allow_nan=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_metrics_of_every_float_type_are_of_the_stored_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    matrix = random_matrix(2, (5, 9)).to(dtype)
    save_file({"m": matrix}, tmp_path / "m.safetensors")
    found = metrics_file(tmp_path / "m.safetensors")
    got = [found[name] for name in ("effective_rank", "participation_ratio", "stable_rank")]
    np.testing.assert_allclose(got, by_definition(matrix.double().numpy()), rtol=1e-10)


def test_metrics_of_zeros_are_null_beside_other_slices(tmp_path: Path) -> None:
    stack = torch.stack([torch.zeros(3, 4), torch.eye(3, 4)])
    stack[1, 2] = 0  # a zero row does not count
    save_file({"m": stack}, tmp_path / "m.safetensors")
    found = metrics_file(tmp_path / "m.safetensors")
    assert math.isnan(found["effective_rank"][0])
    assert found["effective_rank"][1] == pytest.approx(2)


def test_metrics_leave_out_what_is_no_matrix_and_say_so(tmp_path: Path) -> None:
    tensors = {"direction": torch.ones(4), "layer": torch.tensor(3), "ids": torch.arange(6).reshape(2, 3)}
    save_file(tensors, tmp_path / "carrier.safetensors")
    found = metrics_file(tmp_path / "carrier.safetensors")
    assert (found["tensor"], found["skipped"]) == ("direction", ["ids", "layer"])
    assert found["effective_rank"] == pytest.approx(1)


def test_metrics_of_a_torch_file_are_those_of_its_tensors(tmp_path: Path) -> None:
    stack = random_matrix(3, (2 * 4, 6)).reshape(2, 4, 6)
    torch.save(stack, tmp_path / "mean_diffs.pt")
    save_file({"mean_diffs": stack}, tmp_path / "mean_diffs.safetensors")
    one, other = metrics_file(tmp_path / "mean_diffs.pt"), metrics_file(tmp_path / "mean_diffs.safetensors")
    assert one == other
    torch.save({"a": stack[0], "note": "text"}, tmp_path / "more.pt")
    assert metrics_file(tmp_path / "more.pt")["tensor"] == "a"


def test_metrics_never_run_code_in_a_torch_file(tmp_path: Path) -> None:
    torch.save({"code": Path("anything")}, tmp_path / "code.pt")  # an object, not a tensor
    (tmp_path / "text.pt").write_text("no tensors here")
    for name in ("code.pt", "text.pt"):
        with pytest.raises(InputError, match="not a torch file of plain tensors") as caught:
            metrics_file(tmp_path / name)
        assert "\n" not in str(caught.value)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="holds no tensor"):
        metrics_file(tmp_path / "list.pt")


def test_metrics_file_errors(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match="no such file"):
        metrics_file(tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors here, but long enough to look for a header")
    with pytest.raises(InputError, match="not a safetensors file"):
        metrics_file(tmp_path / "text.safetensors")
    save_file({"ids": torch.arange(4)}, tmp_path / "ids.safetensors")
    with pytest.raises(InputError, match=r"ids: a torch\.int64 tensor"):
        metrics_file(tmp_path / "ids.safetensors")
    save_file({"nan": torch.full((2, 2), torch.nan)}, tmp_path / "nan.safetensors")
    with pytest.raises(NumericalError, match=r"nan\.safetensors: nan: the matrix is not finite"):
        metrics_file(tmp_path / "nan.safetensors")
