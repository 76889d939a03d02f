"""What is settled before a plan can be made: which prompts, which backbone, which device and batch shapes."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..artifacts import content_key, file_sha256
from ..attacks.gcg.precision import ranking
from ..config import StudyConfig
from ..data.chat import load_chat_jsonl, refuse_overlaps
from ..data.study_prompts import StudyPrompts, build_study_prompts, user_fields
from ..errors import DataMissingError, UsageError
from ..models.batch import plan_batch_sizes
from ..models.check import check_loaded
from ..models.identity import asked_as, folder_identity
from ..models.load import choose_device, load_model
from ..models.planted import PLANTED
from ..models.resolve import resolve
from ..models.sizes import BatchSizes
from ..paths import hub_offline
from ..training.shards import check_shards
from ..training.trainee import SHARD, check_precision
from .recorded import Facts

PROMPT_TOKENS = 256  # planned for the user's text and the template, when batch shapes are chosen


@dataclass(frozen=True)
class Settled:
    """Facts, and the prompts behind them (None: only their earlier copy in the run directory is left)."""

    facts: Facts
    prompts: StudyPrompts | None


def settle_facts(config: StudyConfig, earlier: Facts | None) -> Settled:
    """Settle what the plan needs; what an earlier start settled (batch shapes, prompt source) is kept.

    Raises:
        DataMissingError: model or data missing. InputError, UsageError: they cannot be used.
    """
    device = choose_device(config.model.device)
    dtype = config.model.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    if not config.observed:
        check_precision(config.training.mode, getattr(torch, dtype))
        _check_trained_whole(config)
        if config.training.shard != "none":
            check_shards(config.training.mode, getattr(torch, dtype))
    backbone = resolve(
        config.model.spec, revision=config.model.revision, trust_remote_code=config.model.trust_remote_code
    )
    identity = asked_as(backbone.identity, config.model.chat_options.identity)
    prompts = _prompts(config, earlier)
    if earlier and prompts is None:
        source, note, digest = earlier.prompts_source, earlier.prompts_note, earlier.prompts_sha256
    else:
        assert prompts is not None
        source, note, digest = prompts.source, prompts.note, content_key(prompts.to_json())
        if earlier and earlier.prompts_sha256 == digest:
            note = earlier.prompts_note  # of the start that chose the source, and where it found it
    (observed, noted), chat_sha256 = _observed(config), _chat_file(config)
    known = earlier is not None and earlier.model_identity == identity
    batch = dict(earlier.batch) if earlier and known else vars(_batch_sizes(config, str(device), dtype))
    facts = Facts(
        model_identity=identity,
        dtype=dtype,
        device=str(device),
        prompts_source=source,
        prompts_note=note,
        prompts_sha256=digest,
        batch=batch,
        observed_identities=observed,
        chat_sha256=chat_sha256,
        float8=earlier.float8
        if earlier and earlier.dtype == dtype
        else ranking(getattr(torch, dtype), device, "float8") == "float8",
        planted=PLANTED in (*backbone.notes, *noted),
    )
    return Settled(facts, prompts)


def _check_trained_whole(config: StudyConfig) -> None:
    """Refuse to train a backbone whose blocks lie on several devices; `fsdp2` has a way of its own.

    Raises:
        UsageError: `model.device_map` beside training that is not `fsdp2`, or beside a warm-up.
    """
    if config.model.device_map is None:
        return
    if config.training.shard != "fsdp2":
        raise UsageError(
            "places blocks for measuring, not for training", where="model.device_map", remedy=SHARD
        )
    if config.warmup.enabled:
        raise UsageError(
            "the warm-up trains a model that is whole on one device",
            where="model.device_map",
            remedy="Set warmup.enabled to false and begin from a backbone that refuses.",
        )


def _prompts(config: StudyConfig, earlier: Facts | None) -> StudyPrompts | None:
    source = config.prompts.source
    if source == "auto" and earlier is not None:
        source = earlier.prompts_source
    try:
        return build_study_prompts(
            source=source,
            limits=config.prompts.limits,
            files={field: Path(name) for field, name in config.prompts.files.items()},
            offline=hub_offline(),
        )
    except DataMissingError:
        if earlier is None:
            raise
        return None


def _chat_file(config: StudyConfig) -> str:
    """SHA-256 of the user's chat file, empty without one; it must be readable and share no prompt with their others."""
    if config.chat.source != "jsonl":
        return ""
    path = Path(config.chat.path or "")
    examples = load_chat_jsonl(path, config.chat.rows + config.chat.heldout_rows)
    others = {f: Path(name) for f, name in config.prompts.files.items() if f not in ("chat", "chat_heldout")}
    if others:
        refuse_overlaps(examples, user_fields(others), path)
    return file_sha256(path)


def _batch_sizes(config: StudyConfig, device: str, dtype: str) -> BatchSizes:
    """Named batch shapes as they are; the others from the device, which takes the loaded model on CUDA.

    Loads the model in any case, and refuses one that cannot be measured before anything is written.
    """
    named = asdict(config.batch)
    loaded = load_model(
        config.model.spec,
        dtype=dtype,
        **config.model.placed(device),
        revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
        options=config.model.chat_options,
    )
    check_loaded(loaded, config.model.system)
    planned = plan_batch_sizes(loaded, PROMPT_TOKENS + config.behaviour.max_new_tokens)
    return BatchSizes(**{key: value or getattr(planned, key) for key, value in named.items()})


def _observed(config: StudyConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Identities of somebody else's checkpoints, and what is said of their models."""
    found, notes = [], list[str]()
    for anchor in config.observed_anchors:
        parts = []
        if anchor.model or anchor.revision:
            spec, code = anchor.model or config.model.spec, config.model.trust_remote_code
            model = resolve(spec, revision=anchor.revision, trust_remote_code=code)
            parts.append(model.identity)
            notes += model.notes
        if anchor.adapter:
            folder = Path(anchor.adapter)
            if not (folder / "adapter_config.json").is_file():
                raise DataMissingError(
                    "no adapter_config.json in this folder",
                    where=f"anchors: {anchor.arm}@{anchor.step}: {folder}",
                    remedy="Name a PEFT adapter folder.",
                )
            parts.append(folder_identity(folder))
        found.append(content_key(parts))
    return tuple(found), tuple(notes)
