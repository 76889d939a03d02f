"""From what a user names to a local folder of safetensors: hub id, folder, GGUF file, adapter folder, or a shipped one.

`embedded` is the raw backbone, `embedded-refusing` the same with the adapter that ships in `data/embedded_refusing`.
"""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import errors as hub_errors
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from ..artifacts import file_sha256
from ..errors import CaryatidError, DataMissingError, InputError
from ..paths import hub_offline
from .convert import convert_gguf, ensure_embedded
from .identity import combined, folder_identity
from .planted import PLANTED, REFUSING
from .quiet import last_line, quiet_transformers
from .weight_files import check_files

EMBEDDED = "embedded"
REFUSING_FOLDER = Path(__file__).parent / "data" / "embedded_refusing"
_CARD = "card.json"
_CHECKED = {
    "adapter_config.json": "config_sha256",
    "adapter_model.safetensors": "sha256",
}  # by the card's keys
_HTTP_ERROR: type[Exception] = vars(hub_errors)["HTTPError"]  # of the HTTP client that this hub version uses
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "tokenizer_config.json",
)
_DEEPEST_ADAPTER_CHAIN = 8


@dataclass(frozen=True)
class ResolvedModel:
    """Where a model lies on this machine.

    Attributes:
        folder: the base model's configuration, safetensors and tokenizer.
        adapters: adapter folders, to be added to it in this order.
        identity: sha256 standing for all of it.
        notes: what a user should know about how it is read.
    """

    folder: Path
    adapters: tuple[Path, ...]
    identity: str
    notes: tuple[str, ...] = ()

    @property
    def tokenizer_folder(self) -> Path:
        """The last adapter's folder if it brings a tokenizer, else the base model's."""
        for adapter in reversed(self.adapters):
            if (adapter / "tokenizer_config.json").is_file():
                return adapter
        return self.folder


def _from_hub(spec: str, revision: str | None, trust_remote_code: bool) -> Path:
    """The hub's model in its local cache, downloaded if that is allowed."""
    offline = hub_offline()
    quiet = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    try:
        return Path(
            snapshot_download(
                spec,
                revision=revision,
                allow_patterns=_HUB_FILES + (["*.py"] if trust_remote_code else []),
                ignore_patterns=[
                    f"*/{pattern}" for pattern in ("*.json", "*.safetensors", "*.model", "*.txt", "*.py")
                ]
                + ["consolidated*"],  # of folders only further chat templates
                local_files_only=offline,
                etag_timeout=10,
            )
        )
    except GatedRepoError as error:
        problem, remedy = (
            "access to this model must be granted on the hub",
            "Accept its terms, then hf auth login.",
        )
        raise DataMissingError(problem, where=spec, remedy=remedy) from error
    except RevisionNotFoundError as error:
        raise DataMissingError(
            f"the hub's model has no revision {revision!r}", where=spec, remedy="Check the revision."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise DataMissingError(
            "no folder or file of this name, and no model on the hub",
            where=spec,
            remedy="Check the name; a private model needs hf auth login.",
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, _HTTP_ERROR, OSError) as error:
        problem = "no folder or file of this name, and not in the local hub cache"
        why = "downloads are off (HF_HUB_OFFLINE)" if offline else "the hub cannot be reached"
        raise DataMissingError(
            f"{problem} while {why}",
            where=spec,
            remedy="Name a local folder or GGUF file, use 'embedded', or allow the download.",
        ) from error
    finally:
        if quiet:
            enable_progress_bars()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        remedy = "Save it as plain UTF-8, or download it again."
        raise InputError(f"not valid JSON: {error}", where=str(path), remedy=remedy) from error
    if not isinstance(content, dict):
        raise InputError("not a JSON object", where=str(path), remedy="Download it again.")
    return content


def _check_base(folder: Path, spec: str, trust_remote_code: bool) -> None:
    """Refuse what cannot work before anything large is read."""
    config = _read_json(folder / "config.json")
    kind = str(config.get("model_type"))
    remote = "auto_map" in config
    other = "Use a decoder-only causal language model (Llama, Mistral, Qwen, Gemma, GPT-2, …)."
    if config.get("is_encoder_decoder"):
        raise InputError(f"{kind} is an encoder–decoder, not a decoder-only model", where=spec, remedy=other)
    if not (remote and trust_remote_code):
        if remote and kind not in CONFIG_MAPPING:
            raise InputError(
                f"model type {kind!r} needs code from its repository, which caryatid does not run by default",
                where=spec,
                remedy="Use a model that transformers supports itself, or read that code and set "
                "model.trust_remote_code (a study) or --trust-remote-code (models check).",
            )
        if kind not in CONFIG_MAPPING:
            raise InputError(f"transformers knows no model type {kind!r}", where=spec, remedy=other)
        named = config.get("architectures") or []
        named = [named] if isinstance(named, str) else named
        known = (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
        classes = {name for mapping in known for name in mapping.values()}
        if not any(kind in mapping for mapping in known) or (named and not classes & set(named)):
            raise InputError(
                f"{', '.join(named) or kind} is not a causal language model", where=spec, remedy=other
            )
        _check_configuration(folder)
    if not any(folder.glob("*.safetensors")):
        _refuse_weights(folder, "pytorch_model*.bin", spec)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise InputError(
            "no tokenizer files", where=spec, remedy="Put the model's tokenizer.json beside its weights."
        )


def _check_configuration(folder: Path) -> None:
    """Refuse files of settings that transformers cannot read, or passes over without a word."""
    if (folder / "generation_config.json").is_file():
        _read_json(folder / "generation_config.json")
    try:
        with quiet_transformers():
            AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # only transformers runs here; no class covers what it raises
        raise InputError(
            f"transformers cannot read it: {last_line(error)}",
            where=str(folder / "config.json"),
            remedy="Use the config.json that belongs to the model.",
        ) from error


def _refuse_weights(folder: Path, pickled: str, spec: str) -> None:
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs:
        raise InputError("holds GGUF files only", where=spec, remedy=f"Name one of them: {ggufs[0]}")
    if any(folder.glob(pickled)):
        raise InputError(
            f"its weights are pickled ({pickled}) and not loaded for safety",
            where=spec,
            remedy="Convert them: save_pretrained writes safetensors.",
        )
    raise DataMissingError(
        "no .safetensors file",
        where=spec,
        remedy="Download the model's weights again; pickled ones must be converted with save_pretrained.",
    )


def _adapter(folder: Path, spec: str, trust_remote_code: bool, depth: int) -> ResolvedModel:
    config = _read_json(folder / "adapter_config.json")
    base = config.get("base_model_name_or_path")
    if not base:
        raise InputError(
            "the adapter does not name its base model",
            where=spec,
            remedy="Set base_model_name_or_path in its adapter_config.json.",
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others and "adapter_model.safetensors" not in others:
        raise InputError(
            f"its tensors are in {others[0]}, not in adapter_model.safetensors",
            where=spec,
            remedy="Save it with PEFT's save_pretrained; an MLX adapter has to be converted, or fused into its model.",
        )
    if not others:
        _refuse_weights(folder, "adapter_model.bin", spec)
    if depth >= _DEEPEST_ADAPTER_CHAIN:
        raise InputError(
            "its chain of base models does not end", where=spec, remedy="Check base_model_name_or_path."
        )
    if (
        str(base).startswith(".") and (folder / str(base)).is_dir()
    ):  # relative to the adapter, as in a run directory
        base = (folder / str(base)).resolve()
    try:
        below = resolve(
            str(base),
            revision=config.get("revision"),
            trust_remote_code=trust_remote_code,
            _depth=depth + 1,
        )
    except CaryatidError as error:
        raise type(error)(
            f"its base model cannot be used: {error.where or base}: {error.what}",
            where=spec,
            remedy=error.remedy or "Correct base_model_name_or_path in its adapter_config.json.",
        ) from error
    whole = combined([below.identity, folder_identity(folder)])
    return ResolvedModel(below.folder, (*below.adapters, folder), whole, below.notes)


def refusing_adapter() -> Path:
    """The folder of the adapter of `embedded-refusing`, whose files are those that its card names.

    Raises:
        DataMissingError: a file of it is missing, or is another one than its card names.
    """
    remedy = "Install caryatid again, make the adapter (recipes/train_refusing_step0.py), or use 'embedded'."
    for name in (_CARD, *_CHECKED):
        if not (REFUSING_FOLDER / name).is_file():
            what = f"its adapter is not in this copy of caryatid ({REFUSING_FOLDER / name})"
            raise DataMissingError(what, where=REFUSING, remedy=remedy)
    try:
        card = json.loads((REFUSING_FOLDER / _CARD).read_text(encoding="utf-8"))["adapter"]
        wanted = {name: str(card[key]) for name, key in _CHECKED.items()}
    except (ValueError, KeyError, TypeError) as error:
        what = f"the card of its adapter is damaged ({REFUSING_FOLDER / _CARD})"
        raise DataMissingError(what, where=REFUSING, remedy=remedy) from error
    for name, sha256 in wanted.items():
        found = file_sha256(REFUSING_FOLDER / name)
        if found != sha256:
            what = f"its adapter is damaged: checksum of {name} is {found[:12]}…, not {sha256[:12]}…"
            raise DataMissingError(what, where=REFUSING, remedy=remedy)
    return REFUSING_FOLDER


def _refusing() -> ResolvedModel:
    """The embedded backbone with the adapter that ships; its identity covers both.

    Raises:
        DataMissingError: the adapter, or the backbone, is not installed, or damaged.
    """
    adapter, embedded = refusing_adapter(), ensure_embedded()
    whole = combined([embedded.identity, folder_identity(adapter)])
    return ResolvedModel(embedded.folder, (adapter,), whole, (PLANTED,))


def _place(spec: str) -> Path:
    """A spec as a path.

    Raises:
        DataMissingError: it begins with the home folder of somebody who is not here.
    """
    try:
        return Path(spec).expanduser()
    except RuntimeError as error:
        raise DataMissingError(f"no such path: {error}", where=spec, remedy="Check the path.") from error


def _is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF file does, whatever its name (Ollama's files have no suffix)."""
    if not path.is_file():
        return False
    with path.open("rb") as handle:
        return handle.read(4) == b"GGUF"


def _has_weights(folder: Path) -> bool:
    """Whether a folder holds a model's own weights, whatever else (a value head, an optimizer's state, …)."""
    named = ("model", "pytorch_model", "consolidated")
    return any(path.name.startswith(named) for path in folder.glob("*.safetensors"))


def resolve(
    spec: str, *, revision: str | None = None, trust_remote_code: bool = False, _depth: int = 0
) -> ResolvedModel:
    """Find a model, downloading or converting it if need be, and check that it can be used.

    Raises:
        DataMissingError: it is nowhere. InputError: it is there and cannot be used.
    """
    if spec == EMBEDDED:
        embedded = ensure_embedded()
        return ResolvedModel(embedded.folder, (), embedded.identity)
    if spec == REFUSING:
        return _refusing()
    path = _place(spec)
    if path.suffix.lower() == ".gguf" or _is_gguf(path):
        converted = convert_gguf(path)
        return ResolvedModel(converted.folder, (), converted.identity, converted.notes)
    if path.is_file():
        raise InputError(
            "a single file, but not GGUF", where=spec, remedy="Name a model folder or a .gguf file."
        )
    if path.is_dir():
        folder = path
    elif _HUB_ID.fullmatch(spec):
        folder = _from_hub(spec, revision, trust_remote_code)
    else:
        raise DataMissingError("no such model folder", where=spec, remedy="Check the path.")
    adapter = (folder / "adapter_config.json").is_file()
    if adapter and not ((folder / "config.json").is_file() and _has_weights(folder)):
        return _adapter(folder, spec, trust_remote_code, _depth)
    if not (folder / "config.json").is_file():
        if any(folder.glob("*.gguf")):
            _refuse_weights(folder, "", spec)
        kinds = ("config.json", "adapter_config.json")
        inner = sorted(path.parent for kind in kinds for path in folder.glob(f"*/{kind}"))
        raise InputError(
            "not a model folder: no config.json and no adapter_config.json",
            where=spec,
            remedy=f"Name a folder in it, such as {inner[-1]}."
            if inner
            else "Check the name; of a repository of GGUF files, download one and name it.",
        )
    _check_base(folder, spec, trust_remote_code)
    unused = check_files(folder, spec)
    both = f"{spec}: it holds full weights and an adapter; the weights are used as they are, the adapter is not added"
    notes = (f"{both} (to add it to its base model, move it to a folder of its own)",) if adapter else ()
    return ResolvedModel(folder, (), folder_identity(folder), (*notes, *unused))
