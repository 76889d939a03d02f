"""What stands for a model's weights and tokenizer in a study: sha256 of the files."""

import contextlib
import hashlib
import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from ..artifacts import file_sha256
from ..paths import cache_dir

# Beside the weights, the files that change what a prompt or an answer is: configuration (quantisation, rotary scaling,
# generation), tokenizer, templates, adapter, and a repository's own code.
_DESCRIBING = (
    *(
        "config.json",
        "generation_config.json",
        "quantize_config.json",
        "quant_config.json",
        "adapter_config.json",
    ),
    *(
        "tokenizer*.json",
        "tokenizer*.model",
        "spiece.model",
        "sentencepiece*.model",
        "tekken.json",
        "*.tiktoken",
    ),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja", "*.py"),
)


def known_sha256(path: Path) -> str:
    """The sha256 of a large file, computed once.

    A file of the hub's cache is named after its sha256. Others are remembered in the cache under their path, size and
    modification time.
    """
    real = path.resolve()
    if real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", real.name):
        return real.name
    stat = real.stat()
    stamp = {"path": str(real), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    memo = cache_dir() / "digests" / f"{hashlib.sha256(str(real).encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, json.JSONDecodeError):  # nothing remembered
        remembered = json.loads(memo.read_text(encoding="utf-8"))
        if isinstance(remembered, dict) and {key: remembered.get(key) for key in stamp} == stamp:
            return str(remembered["sha256"])
    digest = file_sha256(real)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not the result
        memo.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=memo.parent, delete=False, encoding="utf-8") as handle:
            json.dump({**stamp, "sha256": digest}, handle)
        Path(handle.name).replace(memo)
    return digest


def combined(parts: Iterable[str]) -> str:
    """One sha256 for several strings, in order."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def asked_as(identity: str, options: str) -> str:
    """The identity of a model whose chat template is filled in with options of this identity (empty: the defaults)."""
    return combined([identity, options]) if options else identity


def description(folder: Path) -> list[str]:
    """Name and sha256 of every file of a folder, weights apart, that changes what a prompt or an answer is."""
    found = {path for pattern in _DESCRIBING for path in folder.glob(pattern) if path.is_file()}
    return [f"{path.relative_to(folder).as_posix()} {file_sha256(path)}" for path in sorted(found)]


def folder_identity(folder: Path) -> str:
    """The sha256 over name and sha256 of a model or adapter folder's weights, configuration and tokenizer files."""
    weights = sorted(folder.glob("*.safetensors"))
    return combined([f"{path.name} {known_sha256(path)}" for path in weights] + description(folder))
