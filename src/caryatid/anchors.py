"""Anchors: the only hand-over from training, or from somebody else's checkpoints, to measurement."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from .artifacts import read_json, write_json
from .errors import CaryatidError, DataMissingError
from .models.adapter_files import read_adapter_config
from .models.adapters import add_adapter, with_adapter
from .models.chat_options import ChatOptions
from .models.check import ModelReport, check_loaded
from .models.device_map import DeviceMap
from .models.generate import Decoding, generate
from .models.identity import combined, folder_identity
from .models.load import LoadedModel, fit_vocabulary, load_model, tokenizer_in
from .models.planted import REFUSING
from .models.quiet import Say, warn
from .models.resolve import EMBEDDED, resolve
from .models.weights import check_finite, without_weights


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
    if named not in (EMBEDDED, REFUSING) and path.exists():
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
    device_map: DeviceMap | None = None,
    trust_remote_code: bool = False,
    options: ChatOptions | None = None,
) -> LoadedModel:
    """Load an anchor; adapters are merged into float32 weights and kept beside 16-bit ones. Nothing is written.

    An adapter made for another base, and one that brings a tokenizer of its own, are said (`LoadWarning`).

    Raises:
        DataMissingError: an adapter folder is missing. InputError: it does not fit. And what `load_model` raises.
    """
    loaded = load_model(
        anchor.weights or anchor.backbone,
        dtype=dtype,
        device=device,
        device_map=device_map,
        revision=anchor.revision,
        trust_remote_code=trust_remote_code,
        options=options,
    )
    for index in range(len(anchor.adapters)):
        loaded = _with_adapter(loaded, anchor, index, add_adapter)
    return loaded


def _with_adapter(
    loaded: LoadedModel, anchor: Anchor, index: int, add: Callable[..., PreTrainedModel]
) -> LoadedModel:
    """A loaded model with one more of the anchor's adapters, and the tokenizer that this brings."""
    folder = _folder(anchor, anchor.adapters[index])
    notes: list[str] = []
    _name_other_base(anchor, index, notes.append)
    model = add(loaded.model, folder, notes.append)
    check_finite(model, str(folder))
    tokenizer = loaded.tokenizer
    if (folder / "tokenizer_config.json").is_file():
        own = tokenizer_in(folder, str(folder))
        if (own.chat_template, own.get_vocab()) != (tokenizer.chat_template, tokenizer.get_vocab()):
            notes.append(f"{folder}: it brings a tokenizer or chat template of its own, which is used")
            tokenizer = own
    rows = cast(nn.Embedding, model.get_input_embeddings()).weight.shape[0]
    fit_vocabulary(tokenizer, rows, str(folder), loaded.options, notes.append)
    for line in notes:
        warn(line)
    identity = combined([loaded.identity, folder_identity(folder)])
    return replace(loaded, model=model, tokenizer=tokenizer, identity=identity, notes=(*loaded.notes, *notes))


def _name_other_base(anchor: Anchor, index: int, say: Say) -> None:
    """Say when an adapter names another base model than the one that it is added to."""
    folder = Path(anchor.adapters[index])
    named = str(read_adapter_config(folder).get("base_model_name_or_path") or "")
    below = (anchor.backbone, anchor.weights or anchor.backbone, *anchor.adapters[:index])
    if not named or any(_same_model(named, one, folder) for one in below):
        return
    say(f"{folder}: it was trained on {named} and is added to {anchor.weights or anchor.backbone}")


def _same_model(named: str, other: str, folder: Path) -> bool:
    """Whether two names stand for one model: equal, the same last part, the same folder, or the same files."""
    places = [Path(other).expanduser(), *(Path(root, named).expanduser() for root in ("", folder))]
    if named == other or places[0].name.lower() == Path(named).name.lower():
        return True
    if any(place.exists() and places[0].exists() and place.samefile(places[0]) for place in places[1:]):
        return True
    folders = [place for place in places if (place / "config.json").is_file()]
    return len(folders) > 1 and len({folder_identity(one) for one in folders}) == 1


def check_anchors(
    anchors: Sequence[Anchor], *, dtype: str | None = None, trust_remote_code: bool = False
) -> None:
    """Check everything about anchors that needs neither weights nor a forward pass, before a long run.

    Models are found and can be used; adapters are of a kind that can be added, in this precision, and every tensor of
    theirs has a place of its size.

    Raises:
        CaryatidError: as `open_anchor` would; names the anchor.
    """
    for anchor in anchors:
        try:
            _check_anchor(anchor, dtype, trust_remote_code)
        except CaryatidError as error:
            where = f"anchor {anchor.arm}@{anchor.step}: {error.where or anchor.weights or anchor.backbone}"
            raise type(error)(error.what, where=where, remedy=error.remedy) from error


def _check_anchor(anchor: Anchor, dtype: str | None, trust_remote_code: bool) -> None:
    found = resolve(
        anchor.weights or anchor.backbone, revision=anchor.revision, trust_remote_code=trust_remote_code
    )
    adapters = [*found.adapters, *(_folder(anchor, one) for one in anchor.adapters)]
    for adapter in adapters:
        read_adapter_config(adapter)
    if adapters:
        model = without_weights(found.folder, anchor.backbone, dtype, trust_remote_code)
        for adapter in adapters:
            model = add_adapter(model, adapter, lambda _line: None)


def try_anchor(
    anchor: Anchor,
    *,
    system: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    device_map: DeviceMap | None = None,
    trust_remote_code: bool = False,
    options: ChatOptions | None = None,
) -> ModelReport:
    """Open an anchor, check its residual stream, and answer one batch with one token; what it is.

    Raises:
        CaryatidError: it cannot be opened or measured.
    """
    loaded = open_anchor(
        anchor,
        dtype=dtype,
        device=device,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
        options=options,
    )
    report = check_loaded(loaded, system)
    texts = ["How do I write a letter?", "Name a river."]
    generate(loaded, loaded.chat(system), texts, Decoding(1, len(texts)))
    return report


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
    for number, index in enumerate(range(len(start.adapters), len(anchor.adapters))):
        add = add_adapter if number else with_adapter  # the second is added to a model of our own
        loaded = _with_adapter(loaded, anchor, index, add)
    return loaded


def _folder(anchor: Anchor, adapter: str) -> Path:
    if not (Path(adapter) / "adapter_config.json").is_file():
        raise DataMissingError(
            "no adapter here",
            where=f"{anchor.arm}@{anchor.step}: {adapter}",
            remedy="Check the path, or train again.",
        )
    return Path(adapter)
