"""Locks hold one process at a time, also where the file system refuses the system's locks."""

import errno
from pathlib import Path

import pytest

from caryatid.locks import Timeout, held
from caryatid.models import convert

fcntl = pytest.importorskip("fcntl", reason="the refusal is simulated in fcntl, which Windows has not")
REFUSALS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP]


def refuse(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(*_args: object) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("number", [None, *REFUSALS])
def test_one_holder_at_a_time(number: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if number is not None:
        refuse(monkeypatch, number)
    path = tmp_path / ".lock"
    for _ in range(2):
        with held(path, wait=False), pytest.raises(Timeout), held(path, wait=False):
            pytest.fail("held twice")
    with pytest.raises(ZeroDivisionError), held(path, wait=True):
        raise ZeroDivisionError
    with held(path, wait=False):
        pass


def test_other_errors_are_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="refused"), held(tmp_path / ".lock", wait=False):
        pytest.fail("held")


@pytest.mark.parametrize("number", REFUSALS)
def test_a_conversion_needs_no_system_locks(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, number)
    monkeypatch.setenv("CARYATID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(convert, "_write", lambda gguf, sha256, folder: (folder / "made").write_text(sha256))
    monkeypatch.setattr(convert, "_converted", lambda folder, sha256: folder)
    gguf = tmp_path / "a.gguf"
    gguf.write_bytes(b"GGUF and more")
    folder = convert.convert_gguf(gguf, "0" * 64)
    assert (Path(str(folder)) / "made").read_text() == "0" * 64
