"""Anchors: the only hand-over from training, or from somebody else's checkpoints, to measurement."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .artifacts import read_json, write_json
from .errors import DataMissingError
from .models.adapters import add_adapter, with_adapter
from .models.load import LoadedModel, load_model
from .models.resolve import EMBEDDED


@dataclass(frozen=True)
class Anchor:
    """(arm, step) and where its weights are.

    Attributes:
        backbone: what `load_model` takes.
        adapters: PEFT adapter folders, added to the backbone in this order, in memory.
        weights: full weights (folder or hub id) that stand in for the backbone's.
        revision: of the hub model that is loaded.
    """

    arm: str
    step: int
    backbone: str
    adapters: tuple[str, ...] = ()
    weights: str | None = None
    revision: str | None = None


def anchor_to_json(anchor: Anchor, root: Path) -> dict[str, Any]:
    """Plain values; folders below `root` are stored relative to it, so that a run directory can be moved."""

    def relative(name: str | None) -> str | None:
        folder = Path(name).resolve() if name else None
        inside = folder is not None and folder.is_dir() and folder.is_relative_to(root.resolve())
        return str(folder.relative_to(root.resolve())) if folder and inside else name

    return {
        "arm": anchor.arm,
        "step": anchor.step,
        "backbone": anchor.backbone,
        "adapters": [relative(name) for name in anchor.adapters],
        "weights": relative(anchor.weights),
        "revision": anchor.revision,
    }


def anchor_from_json(value: Mapping[str, Any], root: Path) -> Anchor:
    """The inverse of `anchor_to_json`: relative folders that exist below `root` become absolute."""

    def absolute(name: str | None) -> str | None:
        return str((root / name).resolve()) if name and (root / name).is_dir() else name

    return Anchor(
        arm=value["arm"],
        step=value["step"],
        backbone=value["backbone"],
        adapters=tuple(absolute(name) or name for name in value["adapters"]),
        weights=absolute(value["weights"]),
        revision=value["revision"],
    )


def name_base(folder: Path, base: Anchor, root: Path) -> None:
    """Write into a trained adapter's configuration what it was trained on, so that its folder can be opened alone.

    A base below `root` is named relative to the adapter, so that a run directory can be moved.
    """
    named = base.adapters[-1] if base.adapters else base.weights or base.backbone
    path = Path(named).expanduser()
    if named != EMBEDDED and path.exists():
        found = path.resolve()
        inside = found.is_relative_to(root.resolve())
        named = os.path.relpath(found, folder.resolve()) if inside else str(found)
    config = read_json(folder / "adapter_config.json")
    revision = None if base.adapters or base.weights else base.revision
    write_json(
        folder / "adapter_config.json", {**config, "base_model_name_or_path": named, "revision": revision}
    )


def open_anchor(
    anchor: Anchor,
    *,
    dtype: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load an anchor; adapters are merged into float32 weights and kept beside 16-bit ones. Nothing is written.

    Raises:
        DataMissingError: an adapter folder is missing. InputError: it does not fit. And what `load_model` raises.
    """
    loaded = load_model(
        anchor.weights or anchor.backbone,
        dtype=dtype,
        device=device,
        revision=anchor.revision,
        trust_remote_code=trust_remote_code,
    )
    model = loaded.model
    for adapter in anchor.adapters:
        model = add_adapter(model, _folder(anchor, adapter))
    return replace(loaded, model=model)


def builds_on(anchor: Anchor, start: Anchor) -> bool:
    """Whether an anchor is another one with no, or with further, adapters on top."""
    here, there = ((one.weights or one.backbone, one.revision) for one in (anchor, start))
    return here == there and anchor.adapters[: len(start.adapters)] == start.adapters


def open_from(anchor: Anchor, start: Anchor, loaded: LoadedModel) -> LoadedModel:
    """An anchor that `builds_on` another one, made from its loaded model: to the bit what `open_anchor` gives.

    The other model stays as it is; the two share the weights that the further adapters leave alone.

    Raises:
        DataMissingError: an adapter folder is missing. InputError: it does not fit.
    """
    assert builds_on(anchor, start)
    model = loaded.model
    for number, adapter in enumerate(anchor.adapters[len(start.adapters) :]):
        add = add_adapter if number else with_adapter  # the second is added to a model of our own
        model = add(model, _folder(anchor, adapter))
    return replace(loaded, model=model)


def _folder(anchor: Anchor, adapter: str) -> Path:
    if not (Path(adapter) / "adapter_config.json").is_file():
        raise DataMissingError(
            "no adapter here",
            where=f"{anchor.arm}@{anchor.step}: {adapter}",
            remedy="Check the path, or train again.",
        )
    return Path(adapter)
