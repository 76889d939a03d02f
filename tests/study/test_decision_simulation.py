"""The simulation of docs/verdict.md, thinned: few wrong labels and flags, and power where it is asked for."""

import pytest

from caryatid.study.nulls import Planted
from study.simulation import BASES, Simulation, cells, powered, right_flags, right_labels


def test_what_is_right_follows_the_table() -> None:
    assert right_labels(Planted()) == {"no change"}
    assert right_labels(Planted(turn=10)) == {"no change", "drift only"}
    assert right_labels(Planted(move=0.25)) == {"no change", "re-siting"}
    assert right_labels(Planted(turn=20, control=0.6)) == {"drift only"}
    assert right_labels(Planted(turn=20, control=0.3)) == {"replacement in place"}
    assert right_labels(Planted(move=0.5, control=0.3)) == {"relocation"}
    assert right_labels(Planted(move=0.125, control=0.6)) == set()
    assert right_flags(Planted(pr_b=1.5)) == {"expansion", "none"}
    assert right_flags(Planted(scale=2.0)) == {"none"}


def test_cells_leave_out_what_cannot_be() -> None:
    found = list(cells(BASES["nothing changed"]))
    assert len(found) == len(set(found)) > 150
    assert not any(each.turn == 0 and each.move == 0 and each.control < 1 for each in found)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", list(BASES))
def test_every_fourth_cell(name: str) -> None:
    simulation = Simulation(100, seed=1)
    chosen = list(cells(BASES[name]))[::4]
    found = [simulation.run(each) for each in chosen]
    total = len(found) * 100
    assert [each for each in found if each.failed] == []
    assert sum(each.wrong for each in found) <= 0.02 * total
    assert sum(each.wrong_flags for each in found) <= 0.05 * total
    asked = [each for each in found if powered(each.truth)]
    assert len(asked) >= 5
    assert [each for each in asked if each.right < 72] == []  # 80 %, but for the noise of 100 draws
