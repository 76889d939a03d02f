"""`embedded-refusing`: the embedded backbone with the adapter that ships, here a tiny stand-in for both."""

import json
import os
import warnings
from pathlib import Path

import pytest
import torch

from caryatid.anchors import Anchor, name_base, open_anchor
from caryatid.artifacts import file_sha256
from caryatid.behaviour.evaluate import Judges, Wanted, evaluate
from caryatid.behaviour.judges.rules import RefusalRules
from caryatid.behaviour.suites import Asking
from caryatid.cli import run
from caryatid.config import load_config
from caryatid.errors import DataMissingError
from caryatid.models import resolve as room
from caryatid.models.convert import EMBEDDED_SHA256, Converted
from caryatid.models.load import load_model
from caryatid.models.planted import PLANTED, REFUSING
from caryatid.models.quiet import said_once
from caryatid.models.resolve import REFUSING_FOLDER, resolve
from caryatid.report.location import write_location
from caryatid.single.doctor import examine
from caryatid.single.located import LocateSettings
from caryatid.single.model import load
from caryatid.study.facts import settle_facts
from caryatid.study.recorded import Facts
from tiny import save_adapter, save_tiny

IDS = torch.tensor([[5, 17, 90, 33, 8]])
FEW = {
    **{"extraction": 4, "selection": 4, "evaluation": 4, "utility": 2, "positions": 1, "resamples": 2},
    **{"likely": 1, "controls": 2, "max_new_tokens": 2},
}
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model in the backbone's place, and a folder for the adapter, with one in it."""
    base = save_tiny(tmp_path / "base")
    monkeypatch.setattr(room, "ensure_embedded", lambda: Converted(base, "sum", "base identity"))
    folder = save_adapter(tmp_path / "package", size=0.1)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "embedded"}))
    monkeypatch.setattr(room, "REFUSING_FOLDER", folder)
    return described(folder)


def described(folder: Path) -> Path:
    """The adapter's folder with a card of what is in it."""
    sums = {key: file_sha256(folder / name) for name, key in room._CHECKED.items()}
    (folder / "card.json").write_text(json.dumps({"adapter": sums}))
    return folder


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_it_is_the_backbone_with_the_adapter(shipped: Path, tmp_path: Path) -> None:
    loaded = load_model(REFUSING, device="cpu")
    raw = load_model("embedded", device="cpu")
    same = open_anchor(Anchor("base", 0, "embedded", adapters=(str(shipped),)), device="cpu")
    assert torch.equal(logits(loaded.model), logits(same.model))
    assert not torch.allclose(logits(loaded.model), logits(raw.model), atol=0.1)
    assert loaded.spec == REFUSING
    assert PLANTED in loaded.notes


def test_its_identity_covers_both(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve(REFUSING)
    assert first.adapters == (shipped,)
    described(save_adapter(shipped, size=0.1, seed=1))
    other_adapter = resolve(REFUSING).identity
    monkeypatch.setattr(room, "ensure_embedded", lambda: Converted(tmp_path / "base", "sum", "another"))
    other_base = resolve(REFUSING).identity
    assert len({first.identity, other_adapter, other_base, "base identity", "another"}) == 5


def refused(words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Loading it, the command line and the doctor all say so, with a remedy."""
    with pytest.raises(DataMissingError, match=words) as caught:
        load_model(REFUSING, device="cpu")
    assert "recipes/train_refusing_step0.py" in str(caught.value.remedy)
    assert run(["models", "check", REFUSING]) == 3
    assert REFUSING in capsys.readouterr().err
    monkeypatch.setattr("caryatid.models.convert.embedded_state", lambda: "converted")
    finding = next(one for one in examine("cpu", self_test=False) if one.check == REFUSING)
    assert (finding.state, finding.found, finding.exit_code) == ("FAIL", caught.value.what, 3)
    assert finding.remedy == caught.value.remedy


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "card.json"])
def test_without_its_adapter_it_says_what_to_do(
    shipped: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (shipped / name).unlink()
    refused("not in this copy of caryatid", monkeypatch, capsys)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "card.json"])
def test_a_damaged_adapter_is_not_used(
    shipped: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same size, and with the time that the whole file had: as on a disk that fails."""
    assert resolve(REFUSING)
    path = shipped / name
    before, content = path.stat(), path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    refused("damaged", monkeypatch, capsys)


def test_an_arm_trained_on_it_can_be_opened_alone(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a folder of the same name lies about."""
    monkeypatch.chdir(tmp_path)
    Path(REFUSING).mkdir()
    arm = save_adapter(tmp_path / "arm", size=0.05, seed=2)
    name_base(arm, Anchor("base", 0, REFUSING), tmp_path)
    assert json.loads((arm / "adapter_config.json").read_text())["base_model_name_or_path"] == REFUSING
    assert resolve(str(arm)).adapters == (shipped, arm)
    whole = open_anchor(Anchor("sft", 2, REFUSING, adapters=(str(arm),)), device="cpu")
    assert torch.allclose(logits(load_model(str(arm), device="cpu").model), logits(whole.model), atol=1e-5)


def test_results_on_it_and_on_what_was_trained_from_it_say_so(shipped: Path, tmp_path: Path) -> None:
    arm = save_adapter(tmp_path / "arm", size=0.05, seed=2)
    name_base(arm, Anchor("base", 0, REFUSING), tmp_path)
    asking, judges = Asking(max_new_tokens=2, batch_size=4), Judges(RefusalRules())
    for spec in (REFUSING, str(arm)):
        model = load(spec, device="cpu")
        evaluated = evaluate(model.loaded, Wanted(("xstest_safe",), "embedded", limit=2), asking, judges)
        assert evaluated.to_json()["notes"].count(PLANTED) == 1
        located = model.locate(settings=LocateSettings(source="embedded", **FEW), out=tmp_path / "located")
        page = write_location(tmp_path / "page", located).read_text()
        assert page.count(PLANTED) == 1
        assert f"{PLANTED}." not in page
        assert located.to_json()["notes"] == [PLANTED]


def test_a_command_says_it_once(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["evaluate", REFUSING, "--suite", "xstest", "--limit", "2", "--max-new-tokens", "2"]
    assert run([*line, "--source", "embedded"]) == 0
    assert capsys.readouterr().err.replace("\n", " ").count(PLANTED) == 1


@pytest.mark.parametrize("spec", [REFUSING, "embedded"])
def test_a_plan_says_it_once_and_only_of_a_planted_backbone(
    shipped: Path, spec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"model.spec={spec}", "model.device=cpu", "prompts.source=embedded"]
    line = ["study", "plan", "--preset", "quick", *[word for one in settings for word in ("--set", one)]]
    said = int(spec == REFUSING)
    assert run(line) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines().count(PLANTED) == said
    assert PLANTED not in shown.err.replace("\n", " ")
    assert run([*line, "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["notes"] == [PLANTED] * said
    assert PLANTED not in shown.err.replace("\n", " ")


def test_python_hears_it_once_in_a_study_and_again_outside(
    shipped: Path, recwarn: pytest.WarningsRecorder
) -> None:
    warnings.simplefilter("always")
    with said_once():
        for _ in range(2):
            load_model(REFUSING, device="cpu")
    assert [str(one.message) for one in recwarn.list].count(PLANTED) == 1
    load_model(REFUSING, device="cpu")
    assert [str(one.message) for one in recwarn.list].count(PLANTED) == 2


@pytest.mark.parametrize(
    ("backbone", "observed", "said"),
    [
        ("embedded", None, False),
        (REFUSING, None, True),
        ("arm", None, True),
        ("embedded", REFUSING, True),
        ("embedded", "arm", True),
        ("embedded", "base", False),
    ],
)
def test_a_study_records_it_of_its_backbone_and_of_every_checkpoint(
    shipped: Path, tmp_path: Path, backbone: str, observed: str | None, said: bool
) -> None:
    arm = save_adapter(tmp_path / "arm", size=0.05, seed=2)
    name_base(arm, Anchor("base", 0, REFUSING), tmp_path)
    places = {"arm": str(arm), "base": str(tmp_path / "base")}
    named = [f"model.spec={places.get(backbone, backbone)}", "model.device=cpu", "prompts.source=embedded"]
    if observed is not None:
        named += [f"anchors=[{{arm: theirs, step: 1, model: {places.get(observed, observed)}}}]"]
    facts = settle_facts(load_config(preset="quick", overrides=named), None).facts
    assert facts.planted == said
    before = facts.to_json()
    del before["planted"]  # as an earlier version wrote it
    assert Facts.from_json(before) == facts


def test_what_ships_is_what_its_card_describes() -> None:
    weights = REFUSING_FOLDER / "adapter_model.safetensors"
    card = json.loads((REFUSING_FOLDER / "card.json").read_text(encoding="utf-8"))
    assert room.refusing_adapter() == REFUSING_FOLDER
    assert card["adapter"]["sha256"] == file_sha256(weights)
    assert card["base"]["sha256"] == EMBEDDED_SHA256
    assert weights.stat().st_size <= 10_000_000
    config = json.loads((REFUSING_FOLDER / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "embedded"
    assert card["planted"]  # what `PLANTED` says of it, wherever it is used
    assert "planted" in PLANTED
