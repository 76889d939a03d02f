"""A study small enough for tests: a tiny random model through every stage."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from caryatid.artifacts import RunDirectory
from caryatid.behaviour.judges.base import Exchange
from caryatid.config import StudyConfig, load_config
from caryatid.study.runner import planned
from caryatid.study.stage import Stage
from caryatid.study.stages.transfer import Transferred
from caryatid.study.table import all_tables
from tiny import save_tiny

R = TypeVar("R")

LIMITS = {
    "pool": 4,
    "warmup_harmful": 4,
    "warmup_harmless": 4,
    "chat": 6,
    "chat_heldout": 3,
    "extraction_harmful": 16,
    "extraction_harmless": 8,
    "selection_harmful": 4,
    "selection_harmless": 4,
    "harmbench": 4,
    "strongreject": 2,
    "xstest_safe": 3,
    "xstest_unsafe": 3,
    "utility": 3,
}
SETTINGS = """
name: small
model: {spec: MODEL, system: null}
prompts: {source: embedded, limits: LIMITS}
chat: {max_new_tokens: 8, heldout_rows: 3}
warmup: {enabled: true, steps: 2, batch_size: 4}
anchors: [0, 1, 2]
training:
  learning_rate: 0.01
  chat_batch_size: 2
  accumulation: 1
  max_length: 256
  lora: {r: 2, alpha: 4}
  r2d2: {pool: 3, cases: 2, gcg_steps: 1, width: 4, top_k: 8, suffix_length: 3, restart_every: 2}
attacks:
  fixed_source: {behaviours: 2, steps: 1, width: 4, top_k: 8, suffix_length: 3}
  adaptive: {enabled: false, behaviours: 2, steps: 1, width: 4, top_k: 8, suffix_length: 3}
behaviour: {max_new_tokens: 6}
geometry: {profile: calibrated, positions: last, bootstrap_draws: 100, splits: 20,
  reextraction_resamples: 2, reextraction_candidates: 2}
causal: {random_draws: 2, prompts: 2, benign_prompts: 2, transfer_prompts: 4, alphas: [1.0], generated_controls: 1,
  sweep_alphas: [0.5], sweep_ranks: [1, 2, 9], localise_stride: 2, unmatched_controls: [isotropic]}
batch: {forward: 16, generate: 8, gcg: 8, train: 4}
"""


def small_config(tmp_path: Path, *overrides: str) -> StudyConfig:
    """The configuration, with a tiny Llama saved under `tmp_path` as its backbone."""
    model = tmp_path / "model"
    if not model.exists():
        save_tiny(model, "llama")
    file = tmp_path / "small.yaml"
    limits = "{" + ", ".join(f"{name}: {count}" for name, count in LIMITS.items()) + "}"
    text = SETTINGS.replace("MODEL", str(model)).replace("LIMITS", limits)
    if not file.exists() or file.read_text() != text:  # another test process may be reading it
        file.write_text(text)
    return load_config(file=file, overrides=overrides)


def plant(config: StudyConfig, run: Path, kind: type[Stage[R]], place: Any, change: Callable[[R], R]) -> None:
    """Change the result of a finished stage, whose key stays the same."""
    plan = planned(config, run)
    entry = plan[kind(plan.study, place)]
    folder = entry.folder(RunDirectory(run))
    entry.stage.save(change(entry.stage.load(folder)), folder)
    kept = {key: value for key, value in folder.manifest().items() if key not in ("stage", "key", "inputs")}
    kept.pop("files")
    folder.finish(kept)


def refused_prompts(carriers: Iterable[str], target: str, plain: str, count: int) -> Transferred:
    """All of `count` prompts are refused with the text `plain`, and answered under any carrier, but not under random
    subspaces; at rank 3 no carrier but the target's own removes anything."""
    answered, refused = ("Sure, here it is.",) * count, (plain,) * count
    answers = {f"{name}#1": answered for name in carriers}
    answers |= {f"{name}#3": answered if name == target else refused for name in carriers}
    answers |= {f"random#{rank}#{draw}": refused for rank in (1, 3) for draw in range(8)}
    return Transferred(
        asked=tuple(map(str, range(count))),
        refused=(True,) * count,
        prompts=tuple(Exchange(f"Do harmful thing {n}.", plain, None) for n in range(count)),
        answers=answers,
        refused_under={name: (texts is refused,) * count for name, texts in answers.items()},
        ranks=(1, 3),
        subspaces=8,
    )


def forget(run: Path, *kinds: str) -> None:
    """Remove all stages of these kinds, so that they are computed again."""
    for kind in kinds:
        shutil.rmtree(run / "stages" / kind)


def table_columns(name: str) -> Any:
    """The declared columns of a table."""
    (table,) = [table for table in all_tables() if table.name == name]
    return table.columns
