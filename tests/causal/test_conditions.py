import math

import pytest
import torch

from caryatid.causal.conditions import (
    Condition,
    ablation_conditions,
    addition_conditions,
    grouped,
    localisation_conditions,
    mean_energy,
    random_bases,
    row_interventions,
)
from caryatid.errors import InputError, NumericalError
from caryatid.models.directional import Ablate, Add, orthonormal
from caryatid.models.forward import last_logits
from caryatid.models.template import ChatFormat
from tiny import tiny_loaded


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def activations(n: int = 60, d: int = 40) -> torch.Tensor:
    """Anisotropic, with one massive dimension, as residual streams are."""
    x = normal(n, d) * torch.logspace(1, -1, d)
    x[:, 3] += 30
    return x


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("strong", [True, False])
def test_random_bases_hold_the_carriers_energy_and_are_orthogonal_to_it(rank: int, strong: bool) -> None:
    x = activations()
    columns = slice(0, rank) if strong else slice(25, 25 + rank)
    carrier = orthonormal(torch.eye(40)[columns] + 0.05 * normal(rank, 40, seed=1))
    found = random_bases(x, carrier, draws=6, generator=torch.Generator().manual_seed(0))
    expected = float((x @ carrier.T).square().sum(1).mean())
    assert found.target == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(
        found.energy, torch.full((6,), expected, dtype=torch.float64), rtol=1e-3, atol=0
    )
    torch.testing.assert_close(mean_energy(x, found.bases), found.energy, rtol=1e-4, atol=0)
    gram = found.bases @ found.bases.mT
    torch.testing.assert_close(gram, torch.eye(rank).expand(6, -1, -1), rtol=0, atol=1e-5)
    assert float((found.bases @ carrier.T).abs().max()) < 1e-5
    overlap = (found.bases[0] @ found.bases[1].T).norm()
    assert float(overlap) < 0.9 * rank**0.5  # draws differ from each other


def test_an_isotropic_draw_would_hold_far_less() -> None:
    x, carrier = activations(), torch.eye(40)[:1]
    generator = torch.Generator().manual_seed(0)
    plain = random_bases(x, carrier, draws=20, generator=generator, tilt=0.0)
    covariance = random_bases(x, carrier, draws=20, generator=generator, tilt=1.0)
    assert float(plain.energy.median()) < 0.5 * plain.target
    assert float(covariance.energy.median()) > 2 * float(plain.energy.median())
    assert set(plain.tilt.tolist()) == {0.0}


def test_isotropic_draws_are_isotropic() -> None:
    carrier = torch.eye(8)[:1]
    found = random_bases(
        normal(50, 8), carrier, draws=2000, generator=torch.Generator().manual_seed(0), tilt=0.0
    )
    second = (found.bases[:, 0, 1:].mT @ found.bases[:, 0, 1:]) / 2000
    torch.testing.assert_close(second, torch.eye(7) / 7, rtol=0, atol=0.02)


def test_an_energy_that_no_other_direction_has_gives_the_nearest() -> None:
    x = torch.zeros(10, 12)
    x[:, 0] = 5.0
    x[:, 1:] = 0.01 * normal(10, 11)
    found = random_bases(x, torch.eye(12)[:1], draws=2, generator=torch.Generator().manual_seed(0))
    assert found.target == pytest.approx(25)
    assert bool((found.energy < 1).all())  # and `energy` says so


def test_the_same_generator_seed_gives_the_same_draws() -> None:
    draws = [
        random_bases(
            activations(), torch.eye(40)[:1], draws=3, generator=torch.Generator().manual_seed(7)
        ).bases
        for _ in range(2)
    ]
    assert torch.equal(draws[0], draws[1])


def test_random_bases_errors() -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises((InputError, TypeError)):
        random_bases(activations(d=39), torch.eye(40)[:1], draws=2, generator=generator)
    with pytest.raises(InputError, match="rank 3"):
        random_bases(normal(9, 5), torch.eye(5)[:3], draws=2, generator=generator)
    with pytest.raises(NumericalError):
        random_bases(torch.zeros(9, 5), torch.eye(5)[:1], draws=2, generator=generator)


def some_conditions() -> list[Condition]:
    basis = orthonormal(normal(3, 32))
    controls = orthonormal(normal(4, 32, seed=1))[:, None]
    vector = 6 * normal(32, seed=2)
    return [
        Condition(),
        *ablation_conditions(basis),
        *ablation_conditions(basis[:1], controls[:2]),
        *addition_conditions(vector, 2, (0.5, -1.0), controls[2:]),
        *localisation_conditions(basis[:1], (1, 3)),
    ]


def test_condition_builders_say_what_they_are() -> None:
    found = [tuple(c.columns().values()) for c in some_conditions()]
    assert found == [
        ("none", 0, 0.0, "none", None),
        ("ablate", 3, 1.0, "carrier", None),
        ("ablate", 1, 1.0, "carrier", None),
        ("ablate", 1, 1.0, "random", 0),
        ("ablate", 1, 1.0, "random", 1),
        ("add", 1, 0.5, "carrier", None),
        ("add", 1, 0.5, "random", 0),
        ("add", 1, 0.5, "random", 1),
        ("add", 1, -1.0, "carrier", None),
        ("add", 1, -1.0, "random", 0),
        ("add", 1, -1.0, "random", 1),
        ("ablate", 1, 1.0, "carrier", None),
        ("ablate", 1, 1.0, "carrier", None),
    ]
    added = [c for c in some_conditions() if c.intervention == "add"]
    lengths = [float(c.directions.norm()) for c in added if c.directions is not None]
    assert lengths == pytest.approx([lengths[0]] * len(added), rel=1e-5)


def by_hand(condition: Condition) -> tuple[Ablate | Add, ...]:
    if condition.directions is None:
        return ()
    if condition.intervention == "ablate":
        return (Ablate(condition.directions[None], torch.tensor([condition.alpha]), condition.layers),)
    return (Add(condition.directions, torch.tensor([condition.layer]), torch.tensor([condition.alpha])),)


def test_mixed_rows_of_one_batch_equal_each_condition_alone() -> None:
    loaded, conditions = tiny_loaded("llama"), some_conditions()
    ids = ChatFormat(loaded.tokenizer).ids("Explain tides")
    rows = row_interventions(conditions)
    together = last_logits(loaded, [ids] * len(conditions), batch_size=32, interventions=rows)
    alone = torch.cat(
        [last_logits(loaded, [ids], batch_size=1, interventions=by_hand(c)) for c in conditions]
    )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together[0], last_logits(loaded, [ids], batch_size=1)[0], rtol=1e-5, atol=1e-5)
    assert row_interventions([Condition(), Condition()]) == ()


def test_groups_share_where_they_begin_and_lose_no_condition() -> None:
    conditions = some_conditions()
    groups = grouped(conditions, 4)
    assert sorted(i for group in groups for i in group.members) == list(range(len(conditions)))
    for group in groups:
        starts = {conditions[i].start for i in group.members}
        assert starts == {group.start}
    assert [group.start for group in groups] == [0, 2, 1, 3]


def test_one_group_where_a_base_run_would_cost_more_than_it_saves() -> None:
    """Together the late conditions leave out 6 · 2 + 1 + 3 = 16 blocks."""
    conditions = some_conditions()
    (everything,) = grouped(conditions, 16)
    assert everything.members == list(range(len(conditions)))
    assert everything.start == 0
    assert len(grouped(conditions, 15)) == 4
    assert grouped([], 4) == []


def test_impossible_conditions_are_refused() -> None:
    for wrong in (
        {"intervention": "ablate"},
        {"intervention": "none", "directions": torch.eye(3)},
        {"intervention": "add", "directions": torch.eye(3)[:1]},
        {"intervention": "add", "directions": torch.eye(3), "layer": 1},
        {"intervention": "ablate", "directions": torch.eye(3), "alpha": math.nan},
        {"intervention": "add", "directions": torch.eye(3)[:1], "layer": 1, "alpha": math.inf},
    ):
        with pytest.raises(InputError):
            Condition(**wrong)  # type: ignore[arg-type]
