"""One arm, from step 0 to its last anchor; and where the weights of every anchor of a study are."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...anchors import Anchor, name_base
from ...artifacts import nan_to_none
from ...attacks.goals import default_target
from ...data.prompts import Prompt
from ...training.arms import ARMS, arm_named
from ...training.loop import ArmJob, train_arm
from ...training.settings import TrainingSettings
from ...training.terms import toward_only
from ..costs import ANSWER_TOKENS, Sizes, WorkUnits, scoring, suffix_tokens
from ..finished import Results
from ..series import BASE, AnchorRef, ArmRef, SeedRef
from ..stage import AnyStage, Stage, Study, register_stage
from ..weights import StoredAnchors, stored_anchors
from ..work import Work
from .chat import Chat
from .prompts import Prompts
from .warmup import Warmup


@dataclass(frozen=True)
class Trained(StoredAnchors):
    """An arm's anchors. `rows`: of the `training` table, one an anchor."""

    rows: tuple[dict[str, Any], ...]


@register_stage
class Train(Stage[Trained]):
    """All processes of a run train together; the first one writes."""

    kind, scope, result, collective = "train", "arm", Trained, True

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts, None)
        yield self.at(Chat, None)
        yield from step_zero(self.study, self.place.seed)

    def settings(self) -> Mapping[str, Any]:
        # The parts of other arms than this one leave its anchors as they are, and so does where its weights lie.
        others = {arm.part for arm in ARMS.values()} - {arm_named(self.place.arm).part} | {"shard"}
        settings = {k: v for k, v in self.study.settings["training"].items() if k not in others}
        if "r2d2" in settings:  # named where it is not what it was before it could be set
            rescored = self.trained.r2d2.rescored
            rest = {k: v for k, v in settings["r2d2"].items() if k != "rescored"}
            settings["r2d2"] = rest | ({} if rescored == 8 else {"rescored": rescored})
        steps = list(self.config.steps)
        arm = {"arm": self.place.arm, "steps": steps, "training": settings, "seed": self.place.seed}
        return arm | (
            {"gcg": self.study.facts.batch["gcg"]} if arm_named(self.place.arm).suffixes != "none" else {}
        )

    @property
    def trained(self) -> TrainingSettings:
        """The settings of training, with the number of rescored candidates that the device's precision asks for."""
        config = self.config.training
        search = config.r2d2.gcg(config.r2d2.gcg_steps)
        rescored = search.decided(self.study.facts.ranking(search.search_precision))
        return replace(config, r2d2=replace(config.r2d2, rescored=rescored))

    def size(self) -> str:
        steps = self.config.steps[1:]
        updates = self.config.training.updates(steps[-1], self.place.arm)
        return f"{updates}, anchors {', '.join(map(str, steps))}"

    def work_units(self, sizes: Sizes) -> WorkUnits:
        config, arm, steps = self.config.training, arm_named(self.place.arm), self.config.steps[1:]
        chat = min(sizes.tokens["chat"] + self.config.chat.max_new_tokens, config.max_length)
        batches, r2d2 = steps[-1] * config.accumulation, config.r2d2
        tokens = batches * config.chat_batch_size * chat
        attacks = WorkUnits()
        if arm.terms is not None:
            cases = min(r2d2.cases, r2d2.pool)
            suffix = suffix_tokens(r2d2.suffix_length) if arm.suffixes != "none" else 0
            rows = cases if arm.terms is toward_only else 2 * cases
            on_cases = batches * rows * (sizes.tokens["pool"] + suffix + ANSWER_TOKENS)
            tokens += round(on_cases * (1 + arm.passes(config)))
            goals, each = {
                "none": (0, 0),
                "dynamic": (batches * cases, r2d2.gcg_steps),
                "static": (r2d2.pool, r2d2.static_gcg_steps),
            }[arm.suffixes]
            searched = goals * each
            attacks = WorkUnits(attacks=goals, attack_steps=searched, candidates=searched * r2d2.width)
        held, length = sizes.both("chat_heldout")
        answer = self.config.chat.max_new_tokens
        kl = scoring(2 * held, length + answer, 2 * config.chat_batch_size, answer) * len(steps)
        updates = WorkUnits(passes=batches, updates=steps[-1], trained=tokens)
        return sizes.trained(self.config, len(steps)) + updates + attacks + kl

    def run(self, work: Work) -> Trained:
        config, arm = self.config.training, arm_named(self.place.arm)
        prompts, chat = work.of(Prompts, None), work.of(Chat, None)
        work.models.close()
        base = work.models.where(AnchorRef(self.place.seed, BASE, 0))
        loaded = work.models.fresh(base, in_parts=config.shard != "none" and work.ranks.size > 1)
        folder = work.folder.file("anchors")
        job = ArmJob(
            arm=arm,
            settings=self.trained,
            examples=chat.train,
            benign=chat.heldout,
            behaviours=[_with_target(row) for row in prompts.pool],
            anchors=self.config.steps[1:],
            seed=self.place.seed,
            gcg_batch=work.batch.gcg,
        )
        with work.tracked() as numbers:
            trained = train_arm(
                loaded,
                work.chat(loaded),
                job,
                folder,
                work.folder.work_dir,
                ranks=work.ranks,
                progress=work.progress,
                after_update=numbers,
            )
        if not work.ranks.main:
            return Trained((), ())
        anchors = []
        for one in trained.anchors:
            made = str(folder.resolve() / one.folder)
            if config.mode == "lora":
                name_base(Path(made), base, work.root.resolve())
                adapters = (*base.adapters, made)
                anchors.append(replace(base, arm=arm.name, step=one.step, adapters=adapters))
            else:
                anchors.append(Anchor(arm.name, one.step, base.backbone, weights=made))
        rows = tuple(nan_to_none(asdict(row)) for row in trained.rows)
        return Trained(stored_anchors(anchors, work.root), rows)

    def summary(self, result: Trained) -> Mapping[str, Any]:
        config = self.config.training
        dynamic = arm_named(self.place.arm).suffixes == "dynamic"
        return {
            "arm": self.place.arm,
            "anchors": [row["step"] for row in result.anchors],
            "accumulation": config.accumulation,
            "gcg_steps_per_update": config.gcg_steps_per_update if dynamic else 0,
        }


def _with_target(behaviour: Prompt) -> Prompt:
    """A user's behaviour may come without a target; it gets the one that `attack gcg` would use."""
    return behaviour if behaviour.targets else replace(behaviour, targets=(default_target(behaviour.text),))


def step_zero(study: Study, seed: int) -> Iterator[AnyStage]:
    """What made step 0: the warm-up, or nothing where the backbone is step 0 as it is."""
    place = SeedRef(seed)
    if place in list(Warmup.places(study)):
        yield Warmup(study, place)


def makers(study: Study, ref: AnchorRef) -> Iterator[AnyStage]:
    """The stages that made an anchor."""
    if ref.arm == BASE or study.config.observed:
        yield from step_zero(study, ref.seed)
    else:
        yield Train(study, ArmRef(ref.seed, ref.arm))


def where_is(study: Study, results: Results, ref: AnchorRef) -> Anchor:
    """Where an anchor's weights are."""
    config = study.config
    if ref.arm != BASE and config.observed:
        return observed_anchor(study, ref)
    for maker in makers(study, ref):
        stored: StoredAnchors = results.of(maker)
        return stored.at(ref.step, results.run.path)
    return Anchor(BASE, 0, config.model.spec, revision=config.model.revision)


def observed_anchor(study: Study, ref: AnchorRef) -> Anchor:
    """A checkpoint that somebody else trained."""
    model, entries = study.config.model, study.config.observed_anchors
    (entry,) = [entry for entry in entries if (entry.arm, entry.step) == (ref.arm, ref.step)]
    return Anchor(
        ref.arm,
        ref.step,
        model.spec,
        adapters=(str(Path(entry.adapter)),) if entry.adapter else (),
        weights=entry.model,
        revision=entry.revision or (None if entry.model else model.revision),
    )
