"""A short refusal-SFT on prompts used nowhere else; the warmed model is step 0."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...anchors import Anchor, name_base
from ...behaviour.suites import Asked, Asking, run_suites
from ...data.prompts import Prompt
from ...models.load import LoadedModel
from ...training.warmup import Check, WarmupJob, warm_up
from ..costs import ANSWER_TOKENS, Sizes, WorkUnits, decoding
from ..series import Place
from ..stage import AnyStage, Stage, Study, register_stage
from ..weights import StoredAnchors, stored_anchors
from ..work import Work
from .chat import Chat
from .prompts import Prompts

CHECK_PROMPTS = 24  # held-out prompts of each kind for the warm-up's stopping rule
CHECK_TOKENS = 16


@dataclass(frozen=True)
class Warmed(StoredAnchors):
    """Step 0. `updates`: one row each; `checks`: refusal rates of the stopping rule."""

    updates: tuple[dict[str, Any], ...]
    checks: tuple[dict[str, float], ...]


@register_stage
class Warmup(Stage[Warmed]):
    """Trains until the model refuses harmful prompts and answers harmless ones."""

    kind, scope, result = "warmup", "seed", Warmed

    @classmethod
    def places(cls, study: Study) -> Iterable[Place]:
        wanted = study.config.warmup.enabled and not study.config.observed
        return study.places("seed") if wanted else []

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts, None)
        yield self.at(Chat, None)

    def settings(self) -> Mapping[str, Any]:
        training = self.study.settings["training"]
        own = {"warmup": self.study.settings["warmup"], "seed": self.place.seed}
        return own | {key: training[key] for key in ("lora", "mode", "mixed_precision", "max_length")}

    def size(self) -> str:
        return f"≤ {self.config.warmup.steps} updates"

    def work_units(self, sizes: Sizes) -> WorkUnits:
        config, longest = self.config.warmup, self.config.training.max_length
        refused = sizes.tokens["warmup_harmful"] + ANSWER_TOKENS
        answered = sizes.tokens["warmup_harmless"] + self.config.chat.max_new_tokens
        row = sum(
            share * min(length, longest)
            for share, length in ((config.harmful_share, refused), (1 - config.harmful_share, answered))
        )
        updates = WorkUnits(updates=config.steps, trained=config.steps * config.batch_size * row)
        found = sizes.trained(self.config) + updates
        if config.check_every:
            limit = min(CHECK_TOKENS, self.config.behaviour.max_new_tokens)
            batch = self.study.facts.batch["generate"]
            checked = decoding(2 * CHECK_PROMPTS, sizes.tokens["warmup_harmful"], limit, batch)
            found += checked * (config.steps // config.check_every)
        return found

    def run(self, work: Work) -> Warmed:
        config, sets, model = self.config.warmup, work.of(Prompts, None), self.config.model
        training = self.config.training
        backbone = Anchor("base", 0, model.spec, revision=model.revision)
        loaded = work.models.fresh(backbone)
        harmful, held_harmful = _held_out(sets.warmup_harmful.prompts, bool(config.check_every))
        examples = list(work.of(Chat, None).warmup)
        held_harmless: list[Prompt] = []
        if config.check_every:
            held_ids = {row.id for row in examples[-min(CHECK_PROMPTS, len(examples) // 4) :]}
            held_harmless = [row for row in sets.warmup_harmless if row.id in held_ids]
            examples = [row for row in examples if row.id not in held_ids]

        def check(step: int, current: LoadedModel) -> Check:
            refused, safe = (_refusal_rate(work, current, rows) for rows in (held_harmful, held_harmless))
            enough = refused >= config.min_refusal and safe <= config.max_safe_refusal
            return Check(step, refused, safe, enough)

        folder = work.folder.file("weights")
        warmed = warm_up(
            loaded,
            work.chat(loaded),
            WarmupJob(config, training, harmful, sets.refusals, examples, self.place.seed),
            folder,
            work.folder.work_dir,
            check=check,
            progress=work.progress,
        )
        checks = [
            {"step": one.step, "refusal": one.refusal, "safe_refusal": one.safe_refusal}
            for one in warmed.checks
        ]
        if training.mode == "lora":
            name_base(Path(folder), backbone, work.root)
            anchor = replace(backbone, adapters=(str(folder),))
        else:
            anchor = Anchor("base", 0, model.spec, weights=str(folder))
        stored = stored_anchors([anchor], work.root)
        return Warmed(stored, tuple(asdict(row) for row in warmed.rows), tuple(checks))

    def summary(self, result: Warmed) -> Mapping[str, Any]:
        last = result.updates[-1] if result.updates else {}
        return {"updates": len(result.updates), "checks": list(result.checks), "loss": last.get("loss")}


def _held_out(prompts: tuple[Prompt, ...], hold: bool) -> tuple[list[Prompt], list[Prompt]]:
    """Rows to train on, and rows for the stopping rule (at most a quarter)."""
    count = min(CHECK_PROMPTS, len(prompts) // 4) if hold else 0
    return list(prompts[count:]), list(prompts[:count])


def _refusal_rate(work: Work, loaded: LoadedModel, prompts: list[Prompt]) -> float:
    config = work.study.config
    limit = config.behaviour.max_new_tokens
    tokens = min(CHECK_TOKENS, limit) if config.model.thinking == "off" else limit  # a thought comes first
    asking = Asking(tokens, work.batch.generate, config.model.system)
    rows = run_suites(loaded, [Asked("warmup", "none", prompts)], asking, judge=work.judge)
    return sum(row.refused for row in rows) / max(len(rows), 1)
