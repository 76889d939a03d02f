"""Pieces of a computation survive its end, and are taken only where they belong."""

from pathlib import Path

import pytest
import torch

from caryatid import keeping
from caryatid.keeping import kept, piece


class _Counted:
    """A computation of some pieces, of which it counts those that it makes."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def one(self, number: int) -> torch.Tensor:
        self.made.append(number)
        return torch.tensor([float(number), 0.5])

    def run(self, folder: Path, count: int, stop: int | None = None) -> list[torch.Tensor]:
        found = []
        with kept(folder):
            for number in range(count):
                if number == stop:
                    raise KeyboardInterrupt
                found.append(piece(f"batch {number}", lambda number=number: self.one(number)))
        return found


def test_a_broken_off_computation_goes_on_with_what_it_made(tmp_path: Path) -> None:
    first, second = _Counted(), _Counted()
    with pytest.raises(KeyboardInterrupt):
        first.run(tmp_path / "kept", 5, stop=3)
    found = second.run(tmp_path / "kept", 5)
    assert (first.made, second.made) == ([0, 1, 2], [3, 4])
    assert torch.equal(torch.stack(found), torch.tensor([[n, 0.5] for n in range(5)]))


def test_without_a_folder_and_for_a_short_whole_computation_nothing_is_written(tmp_path: Path) -> None:
    assert piece("alone", lambda: 3) == 3
    _Counted().run(tmp_path / "kept", 3)
    assert not (tmp_path / "kept").exists()


def test_pieces_are_written_while_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "KEEP_EVERY", 0.0)
    with kept(tmp_path / "outer"), kept(tmp_path / "inner"):  # as a process that is killed leaves them
        for number in range(3):
            piece(f"batch {number}", lambda number=number: number)
            files = sorted(path.name for path in (tmp_path / "outer" / "inner").iterdir())
            assert files == [f"{n:06d}.pt" for n in range(number + 1)]


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_file_of_pieces_is_made_again(tmp_path: Path, damage: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        _Counted().run(tmp_path / "kept", 5, stop=3)
    (file,) = (tmp_path / "kept").iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content) if damage == "flipped" else bytes(content[:-9]))
    again = _Counted()
    again.run(tmp_path / "kept", 5)
    assert again.made == [0, 1, 2, 3, 4]


def test_pieces_that_were_made_in_another_way_are_made_anew_and_take_their_place(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _Counted().run(tmp_path / "kept", 5, stop=4)

    def halved(stop: int) -> list[str]:
        made = []
        with kept(tmp_path / "kept"):
            for name in ["batch 0", "batch 1", "half 2", "half 3", "half 4"][:stop]:
                piece(name, lambda name=name: made.append(name))
            raise KeyboardInterrupt
        return made

    with pytest.raises(KeyboardInterrupt):
        halved(4)
    again = []
    with kept(tmp_path / "kept"):
        for name in ["batch 0", "batch 1", "half 2", "half 3", "half 4"]:
            piece(name, lambda name=name: again.append(name))
    assert again == ["half 4"]
