"""What a running stage works with: results of earlier stages, opened models, and a folder for partial work."""

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..anchors import Anchor, builds_on, open_anchor, open_from
from ..artifacts import RunDirectory, StageFolder
from ..behaviour.judges.base import Judge
from ..behaviour.judges.registry import open_harm_judge, open_refusal_judge
from ..causal.locate import Measured
from ..data.prompts import Prompt
from ..data.study_prompts import StudyPrompts
from ..keeping import kept
from ..models.check import check_loaded
from ..models.load import LoadedModel
from ..models.sizes import BatchSizes
from ..models.template import ChatFormat
from ..progress import NO_PROGRESS, Progress
from ..training.ranks import ALONE, Ranks
from .events import Events
from .finished import Results
from .leases import Leases
from .plan import Plan, Planned
from .series import AnchorRef
from .stage import Stage, Study
from .tracking import Numbers, Tracking

R = TypeVar("R")
_SAME: Any = object()


def gpus_of(study: Study) -> int:
    """GPUs that one process measures with: none on a CPU, else one, or those that `model.device_map` places blocks on.

    Where it leaves the choice to transformers these are all that this process sees.
    """
    places = study.config.model.device_map
    if not study.facts.device.startswith("cuda"):
        return 0
    if isinstance(places, dict):
        cards = {str(place).removeprefix("cuda:") for place in places.values()} - {"cpu", "disk"}
        return max(1, len(cards))
    return 1 if places is None else max(1, torch.cuda.device_count())


class Models:
    """Opens anchors. Keeps at most two models in memory: step 0 and the anchor in hand.

    An anchor that is step 0 with an adapter is made from it, without loading step 0 again.
    """

    def __init__(self, study: Study, where: Callable[[AnchorRef], Anchor]) -> None:
        self.study, self.where = study, where
        self._open: dict[AnchorRef, LoadedModel] = {}

    def open(self, ref: AnchorRef) -> LoadedModel:
        """The anchor's model, ready for measurement."""
        if ref not in self._open:
            for other in [key for key in self._open if key != ref.base]:
                del self._open[other]
            gc.collect()
            self._open[ref] = self._made_from_step_0(ref) or self.fresh(self.where(ref))
        return self._open[ref]

    def _made_from_step_0(self, ref: AnchorRef) -> LoadedModel | None:
        """The anchor as step 0 with further adapters; None where it is something else."""
        start, anchor = self.where(ref.base), self.where(ref)
        if ref == ref.base or not builds_on(anchor, start):
            return None
        return open_from(anchor, start, self.open(ref.base))

    def fresh(self, anchor: Anchor, *, in_parts: bool = False) -> LoadedModel:
        """An anchor's model, loaded anew; weights that somebody else trained are checked first.

        Args:
            in_parts: it stays on the CPU, from where training takes it to the device in parts.
        """
        config, facts = self.study.config, self.study.facts
        loaded = open_anchor(
            anchor,
            dtype=facts.dtype,
            **({"device": "cpu"} if in_parts else config.model.placed(facts.device)),
            trust_remote_code=config.model.trust_remote_code,
            options=config.model.chat_options,
        )
        if in_parts:
            loaded = replace(loaded, device=torch.device(facts.device))
        if config.observed and anchor.weights:
            check_loaded(loaded, config.model.system)
        return loaded

    def close(self) -> None:
        """Let go of all models."""
        self._open.clear()
        gc.collect()


@dataclass
class Session:
    """One run of a study, shared by all its stages.

    Attributes:
        locate: says where an anchor's weights are. settled_prompts: as collected when the run began; None: their copy
            in the run directory is all that is left. repair: damaged stages are computed anew. track: trackers.
    """

    study: Study
    plan: Plan
    run: RunDirectory
    locate: Callable[[Study, Results, AnchorRef], Anchor]
    settled_prompts: StudyPrompts | None = None
    progress: Progress = NO_PROGRESS
    announce: Callable[[str], None] = lambda _line: None
    ranks: Ranks = ALONE
    repair: bool = False
    track: Sequence[str] = ()
    results: Results = field(init=False)
    models: Models = field(init=False)
    leases: Leases = field(init=False)
    events: Events = field(init=False)
    tracking: Tracking = field(init=False)

    def __post_init__(self) -> None:
        self.leases = Leases(self.run)
        self.tracking = Tracking(self.track, self.study.config.name, self.run.path)
        self.events = Events(self.run.path, tell=self.tracking.event)
        self.results = Results(self.plan, self.run)
        self.models = Models(self.study, self._where)

    def _where(self, ref: AnchorRef) -> Anchor:
        return self.results.intact(self.locate(self.study, self.results, ref))

    @cached_property
    def judge(self) -> Judge:
        """The refusal judge of this study."""
        return open_refusal_judge(self.study.config.behaviour.refusal_judge)

    @cached_property
    def harm_judge(self) -> Judge:
        """The harmfulness judge; a judge that is a model is loaded once, after the anchors were let go."""
        self.models.close()
        return open_harm_judge(self.study.config.behaviour.harm_judge)

    def close(self) -> None:
        """Let go of models and results."""
        self.models.close()
        self.results.clear()


@dataclass(frozen=True)
class Work:
    """What one stage may use while it runs."""

    session: Session
    entry: Planned

    @property
    def study(self) -> Study:
        """The study's configuration and facts."""
        return self.session.study

    @property
    def folder(self) -> StageFolder:
        """The stage's folder: for files that are part of its result, and for partial work (`work_dir`, `chunks`)."""
        return self.entry.folder(self.session.run)

    @property
    def root(self) -> Path:
        """The run directory."""
        return self.session.run.path

    @property
    def batch(self) -> BatchSizes:
        """The batch shapes that were planned."""
        return BatchSizes(**self.study.facts.batch)

    @property
    def judge(self) -> Judge:
        """The study's refusal judge."""
        return self.session.judge

    @property
    def ranks(self) -> Ranks:
        """The processes that train together."""
        return self.session.ranks

    @property
    def models(self) -> Models:
        """Opens anchors."""
        return self.session.models

    @property
    def progress(self) -> Progress:
        """Where progress is reported."""
        return self.session.progress

    def of(self, kind: type[Stage[R]], place: Any = _SAME) -> R:
        """The result of an earlier stage, by default at the same place.

        Raises:
            ValueError: the stage does not need that one, so that its key would not know of a change there.
        """
        stage = kind(self.study, self.entry.stage.place if place is _SAME else place)
        if stage.id not in self.entry.upstream:
            raise ValueError(f"{self.entry.id} reads {stage.id} without needing it")
        return self.session.results.of(stage)

    def open(self, ref: AnchorRef | None = None) -> LoadedModel:
        """An anchor's model, by default that of the stage's own place."""
        return self.models.open(self.entry.stage.place if ref is None else ref)

    def measured(self, ref: AnchorRef | None = None) -> Measured:
        """An anchor's model ready for forward passes, by default that of the stage's own place."""
        loaded = self.open(ref)
        return Measured(loaded, self.chat(loaded), self.batch.forward, self.progress)

    def chat(self, loaded: LoadedModel) -> ChatFormat:
        """The chat format with the study's system message."""
        return loaded.chat(self.study.config.model.system)

    def kept(self, name: str) -> AbstractContextManager[None]:
        """Batches that are run inside are kept under this name, so that a killed stage does not run them again."""
        return kept(self.folder.work_dir / "pieces" / name)

    def tracked(self) -> AbstractContextManager[Numbers]:
        """Context that takes numbers of the training under way, for experiment trackers."""
        return self.session.tracking.training(self.entry.id)

    @contextmanager
    def progressing(self, what: str, total: int) -> Iterator[Progress]:
        """Report progress on `total` units of something."""
        self.progress.start(what, total)
        yield self.progress
        self.progress.done()


def texts_of(rows: Iterable[Prompt]) -> list[str]:
    """What is sent for each prompt."""
    return [row.user_text for row in rows]
