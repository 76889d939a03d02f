"""Answers of one anchor to every suite and attack, with the refusal judge's verdicts, and held-out perplexity."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...behaviour.answers import AnswerRow, Attack
from ...behaviour.evaluate import ATTACKED
from ...behaviour.judges.base import judge_id
from ...behaviour.perplexity import Perplexity, heldout_perplexity
from ...behaviour.suites import Asked, Asking, run_suites
from ..attacking import AttackStage
from ..costs import Sizes, WorkUnits, decoding, scoring
from ..series import SeedRef
from ..stage import AnyStage, Stage, Study, register_stage
from ..work import Work
from .adaptive import Adaptive
from .cases import Cases
from .chat import Chat
from .prompts import Prompts
from .train import makers

# Settings of `behaviour` that answers depend on; harm is judged afterwards, from saved answers.
ANSWERED = ("suites", "max_new_tokens", "refusal_judge")


@dataclass(frozen=True)
class Answered:
    """Judged answers in the order asked; `perplexity` where it was taken; `judge`: `name@version`."""

    rows: tuple[AnswerRow, ...]
    judge: str
    perplexity: Perplexity | None = None

    def to(self, suite: str, attack: str) -> list[AnswerRow]:
        """The answers to one suite under one attack."""
        return [row for row in self.rows if (row.suite, row.attack) == (suite, attack)]


@register_stage
class Answers(Stage[Answered]):
    """What the anchor says."""

    kind, scope, result = "answers", "anchor", Answered

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts, None)
        yield self.at(Chat, None)
        yield from makers(self.study, self.place)
        yield from (stage for _, stage in attacks_at(self))

    def settings(self) -> Mapping[str, Any]:
        behaviour = self.study.settings["behaviour"]
        asked = {"behaviour": {key: behaviour[key] for key in ANSWERED}}
        return {**self.study.anchor_settings(self.place, "generate", "forward"), **asked}

    def size(self) -> str:
        config = self.config.behaviour
        return f"{', '.join(config.suites)}; ≤ {config.max_new_tokens} tokens"

    def work_units(self, sizes: Sizes) -> WorkUnits:
        config, batch = self.config, self.study.facts.batch
        rows, tokens = sizes.both(*(suite for suite in config.behaviour.suites if suite != "perplexity"))
        attacked = sum(stage.attack.behaviours for _, stage in attacks_at(self))
        found = decoding(rows + attacked, tokens, config.behaviour.max_new_tokens, batch["generate"])
        if "perplexity" in config.behaviour.suites:
            count, length = sizes.both("chat_heldout")
            answer = config.chat.max_new_tokens
            found += scoring(count, length + answer, batch["forward"], answer)
        return found

    def run(self, work: Work) -> Answered:
        loaded, config = work.open(), self.config.behaviour
        suites = [suite for suite in config.suites if suite != "perplexity"]
        asked = [one for suite in suites for one in self._asked(work, suite)]
        with work.progressing("answers", sum(len(one.prompts) for one in asked)) as progress:
            rows = run_suites(
                loaded,
                asked,
                Asking(config.max_new_tokens, work.batch.generate, self.config.model.system),
                judge=work.judge,
                chunks=work.folder.chunks("answers"),
                progress=progress,
            )
        perplexity = None
        if "perplexity" in config.suites:
            held_out = work.of(Chat, None).heldout
            perplexity = heldout_perplexity(
                loaded, work.chat(loaded), held_out, batch_size=work.batch.forward
            )
        return Answered(tuple(rows), judge_id(work.judge), perplexity)

    def _asked(self, work: Work, suite: str) -> list[Asked]:
        """A suite's prompts as they are, and HarmBench's also as each attack sends them."""
        prompts = getattr(work.of(Prompts, None), suite).prompts
        found = [Asked(suite, "direct" if suite in ATTACKED else "none", prompts)]
        for attack, stage in attacks_at(self) if suite == "harmbench" else []:
            cases = work.of(type(stage), stage.place).sent
            found.append(Asked(suite, attack, [row for row in prompts if row.id in cases], cases))
        return found

    def summary(self, result: Answered) -> Mapping[str, Any]:
        return {"answers": len(result.rows), "judge": result.judge}


def attacks_at(stage: Stage[Any]) -> list[tuple[Attack, AttackStage]]:
    """The attacks that an anchor's answers are asked under, by the name they have in tables."""
    study: Study = stage.study
    found: list[tuple[Attack, AttackStage]] = []
    if study.config.attacks.fixed_source.enabled:
        found.append(("fixed_source", stage.at(Cases, SeedRef(stage.place.seed))))
    if stage.place in Adaptive.places(study):
        found.append(("adaptive", stage.at(Adaptive)))
    return found
