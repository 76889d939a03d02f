"""A study's models: step 0 is loaded once, anchors with adapters are made from it, at most one beside it is kept."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from caryatid import anchors
from caryatid.anchors import Anchor, open_anchor
from caryatid.config import StudyConfig
from caryatid.study.series import AnchorRef
from caryatid.study.stage import Study
from caryatid.study.work import Models
from tiny import save_tiny


def save_adapter(path: Path, seed: int) -> str:
    from peft import LoraConfig, get_peft_model

    from tiny import tiny_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(
            tiny_model(), LoraConfig(r=2, init_lora_weights=False, target_modules="all-linear")
        )
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(path)
    return str(path)


def test_one_loaded_backbone_serves_all_anchors_with_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = str(save_tiny(tmp_path / "base")), str(save_tiny(tmp_path / "other", seed=1))
    warm, one, two = (save_adapter(tmp_path / name, seed) for seed, name in enumerate(("warm", "one", "two")))
    base, first, second, full = (
        AnchorRef(0, arm, step) for arm, step in (("base", 0), ("a", 1), ("a", 2), ("b", 1))
    )
    where = {
        base: Anchor("base", 0, folder, (warm,)),
        first: Anchor("a", 1, folder, (warm, one)),
        second: Anchor("a", 2, folder, (warm, two)),
        full: Anchor("b", 1, folder, weights=other),
    }
    loads: list[str] = []
    real = anchors.load_model

    def counted(spec: str, **options: Any) -> Any:
        loads.append(spec)
        return real(spec, **options)

    monkeypatch.setattr(anchors, "load_model", counted)
    facts = SimpleNamespace(dtype="float32", device="cpu")
    models = Models(Study(StudyConfig(), cast(Any, facts)), where.__getitem__)
    for ref in (first, second, base, first, full, second):
        opened = models.open(ref).model.state_dict()
        alone = open_anchor(where[ref], dtype="float32", device="cpu").model.state_dict()
        loads.pop()
        assert all(torch.equal(opened[name], value) for name, value in alone.items())
        assert len(models._open) <= 2
    assert loads == [folder, other]
    models.close()
    assert models.open(base) is models.open(base)
    assert loads == [folder, other, folder]
