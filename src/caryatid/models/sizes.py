"""Rows per batch for each kind of work. Free of torch, so that a configuration can embed it."""

from dataclasses import dataclass

from ..settings import Settings, setting


@dataclass(frozen=True)
class BatchSizes(Settings):
    """Chosen when a study is planned, and kept on resume."""

    forward: int = setting(0, "Whole prompts scored at once; 0: chosen from the device's free memory.", ge=0)
    generate: int = setting(0, "Answers decoded at once; 0: chosen.", ge=0)
    gcg: int = setting(0, "Candidate suffixes scored at once; 0: chosen.", ge=0)
    train: int = setting(0, "Examples of a micro-batch run at once; 0: chosen.", ge=0)
