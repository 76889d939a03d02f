"""Where the weights of a study's anchors are, stored so that a run directory can be moved."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..anchors import Anchor, anchor_from_json, anchor_to_json


@dataclass(frozen=True)
class StoredAnchors:
    """`anchors`: as plain values; folders below the run directory are relative to it."""

    anchors: tuple[dict[str, Any], ...]

    def at(self, step: int, root: Path) -> Anchor:
        """The anchor of a step, its folders below the run directory `root`."""
        (stored,) = [row for row in self.anchors if row["step"] == step]
        return anchor_from_json(stored, root)


def stored_anchors(anchors: Sequence[Anchor], root: Path) -> tuple[dict[str, Any], ...]:
    """Plain values of anchors, folders below `root` relative to it."""
    return tuple(anchor_to_json(anchor, root.resolve()) for anchor in anchors)
