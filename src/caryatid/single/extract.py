"""Directions of a single model, outside a study."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ..artifacts import write_bytes
from ..causal.activations import activation_sums, summed_directions
from ..data.study_prompts import Source, build_study_prompts
from ..errors import UsageError
from ..models.batch import plan_batch_sizes
from ..models.load import LoadedModel
from ..paths import hub_offline
from ..progress import NO_PROGRESS, Progress


def extract_directions(
    loaded: LoadedModel,
    output: Path,
    *,
    prompts: int,
    source: Source,
    seed: int,
    system: str | None,
    activations: Path | None = None,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Write `directions` [positions, layers, d] and `category_directions` [categories, layers, positions, d], float32.

    From sums in float64: one batch of activations is held at a time.

    Args:
        prompts: extraction prompts of each kind, at most.
        activations: a file for those of every prompt, `harmful` and `harmless` [prompts, layers, positions, d],
            float32; these are all held in memory then.

    Raises:
        UsageError: the file cannot be written.
    """
    sets = build_study_prompts(
        source=source,
        limits={"extraction_harmful": prompts, "extraction_harmless": prompts},
        seed=seed,
        offline=hub_offline(),
    )
    chat = loaded.chat(system)
    size = plan_batch_sizes(loaded, 256).forward
    sides = {"harmful": sets.extraction_harmful, "harmless": sets.extraction_harmless}
    kept: dict[str, list[Tensor]] = {side: [] for side in sides}
    progress.start("activations", sum(map(len, sides.values())))
    harmful, harmless = (
        activation_sums(
            loaded,
            chat.ids_many([row.user_text for row in rows]),
            [row.category or "unlabelled" for row in rows],
            n_positions=chat.n_post,
            batch_size=size,
            progress=progress,
            keep=kept[side].append if activations is not None else None,
        )
        for side, rows in sides.items()
    )
    found = summed_directions(harmful, harmless)
    metadata = {"model": loaded.identity, "categories": ",".join(found.names)}
    directions = found.overall.float().contiguous()
    _save(output, {"directions": directions, "category_directions": found.categories.float()}, metadata, "-o")
    if activations is not None:
        whole = {side: torch.cat(parts) for side, parts in kept.items()}
        _save(activations, whole, {"model": loaded.identity}, "--activations")
    return {
        "output": str(output),
        "activations": None if activations is None else str(activations),
        "shape": list(directions.shape),
        "positions": chat.post_tokens,
        "categories": list(found.names),
        "prompts": [sum(harmful.counts), sum(harmless.counts)],
        "source": sets.source,
    }


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], option: str) -> None:
    try:
        write_bytes(
            path, save({name: each.contiguous() for name, each in tensors.items()}, metadata=metadata)
        )
    except OSError as error:
        raise UsageError(
            f"cannot be written ({error.strerror})", where=str(path), remedy=f"Choose another {option}."
        ) from error
