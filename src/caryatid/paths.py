"""Where caryatid finds data, its own and the user's, and keeps what it converts or downloads."""

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path


def cache_dir() -> Path:
    """`CARYATID_CACHE`, or caryatid's folder in the user cache. Not created here."""
    named = os.environ.get("CARYATID_CACHE")
    return Path(named).expanduser() if named else user_cache_path("caryatid")


def data_dir() -> Path | None:
    """`CARYATID_DATA` when it is set, else None."""
    named = os.environ.get("CARYATID_DATA")
    return Path(named).expanduser() if named else None


def hub_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` forbids downloads."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}


def package_json(name: str) -> Any:
    """The content of a JSON file that comes with the package, by its path in it: `data/categories.json`."""
    return json.loads(resources.files("caryatid").joinpath(*name.split("/")).read_text(encoding="utf-8"))
