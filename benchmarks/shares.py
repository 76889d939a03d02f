"""Shares as the documentation writes them."""

from collections.abc import Mapping
from typing import Any


def bounds(row: Mapping[str, Any], digits: int = 2) -> str:
    """Value and interval, as shares are written: `.72 [.67, .78]`."""
    return f"{share(row['value'], digits)} [{share(row['lo'], digits)}, {share(row['hi'], digits)}]"


def share(value: float, digits: int = 2) -> str:
    """A number without the nought before its point."""
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 and text.lstrip("-").startswith("0.") else text
