"""Chat examples: for the SFT term that all arms share, held out for perplexity and benign KL, and for the warm-up."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...anchors import Anchor
from ...data.chat import (
    ChatExample,
    distill,
    hold_out,
    load_chat_dataset,
    load_chat_jsonl,
    without_overlaps,
)
from ...data.prompts import Dropped, Prompt
from ...models.generate import Decoding, generate
from ...models.load import LoadedModel
from ..costs import Sizes, WorkUnits, decoding
from ..stage import AnyStage, Stage, register_stage
from ..work import Work
from .prompts import Prompts

CHUNK_BATCHES = 2  # batches per resumable chunk of answers


@dataclass(frozen=True)
class ChatSets:
    """Examples by use; `dropped`: rows of the user's file or dataset that were prompts of another role."""

    train: tuple[ChatExample, ...]
    heldout: tuple[ChatExample, ...]
    warmup: tuple[ChatExample, ...]
    dropped: tuple[Dropped, ...] = ()


class _Kept(NamedTuple):
    """A stored answer."""

    text: str
    ended: bool


@register_stage
class Chat(Stage[ChatSets]):
    """The backbone's own greedy answers, or examples of a file or dataset."""

    kind, scope, result = "chat", "study", ChatSets

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts)

    def settings(self) -> Mapping[str, Any]:
        study = self.study
        file = {"file": study.facts.chat_sha256} if study.facts.chat_sha256 else {}
        warmed = self.config.warmup.enabled and not self.config.observed
        return {
            "model": study.model_settings("generate"),
            "chat": study.settings["chat"],
            "warmup": warmed,
        } | file

    def size(self) -> str:
        return f"source {self.config.chat.source}"

    def work_units(self, sizes: Sizes) -> WorkUnits:
        config, found = self.config.chat, WorkUnits(loaded=1)
        names = ["chat", "chat_heldout"] if config.source == "self_distilled" else []
        if self.config.warmup.enabled and not self.config.observed:
            names.append("warmup_harmless")
        for name in names:
            rows, tokens = sizes.both(name)
            found += decoding(rows, tokens, config.max_new_tokens, self.study.facts.batch["generate"])
        return found

    def run(self, work: Work) -> ChatSets:
        config, model, sets = self.config.chat, self.config.model, work.of(Prompts)
        dropped: tuple[Dropped, ...] = ()
        loaded = work.models.fresh(Anchor("base", 0, model.spec, revision=model.revision))
        if config.source == "self_distilled":
            train = _distilled(work, loaded, "chat", sets.chat.prompts, config.max_new_tokens)
            heldout = _distilled(work, loaded, "heldout", sets.chat_heldout.prompts, config.max_new_tokens)
        else:
            rows = config.rows + config.heldout_rows
            found = (
                load_chat_jsonl(Path(config.path or ""), rows)
                if config.source == "jsonl"
                else load_chat_dataset(config.dataset or "", config.split, rows)
            )
            others = [one for name, one in sets.sets.items() if name not in ("chat", "chat_heldout")]
            kept = without_overlaps(found, others, config.path or config.dataset or "")
            dropped = kept.dropped
            split = hold_out(kept.examples, min(config.heldout_rows, len(kept.examples) // 2), seed=0)
            heldout, train = split.heldout, split.train
        warmup: list[ChatExample] = []
        if self.config.warmup.enabled and not self.config.observed:
            rows_ = sets.warmup_harmless.prompts
            warmup = _distilled(work, loaded, "warmup", rows_, config.max_new_tokens)
        return ChatSets(tuple(train), tuple(heldout), tuple(warmup), dropped)

    def summary(self, result: ChatSets) -> Mapping[str, Any]:
        counts = {name: len(getattr(result, name)) for name in ("train", "heldout", "warmup")}
        return {"source": self.config.chat.source, "examples": counts}


def _distilled(
    work: Work, loaded: LoadedModel, name: str, rows: Sequence[Prompt], max_new_tokens: int
) -> list[ChatExample]:
    """The backbone's own greedy answers, chunk by chunk, so that a killed run goes on."""
    size = CHUNK_BATCHES * work.batch.generate
    chunks = work.folder.chunks(name)

    def answer(texts: Sequence[str]) -> list[_Kept]:
        kept = [_Kept(*row) for part in chunks.load() for row in part]
        with work.progressing(f"chat answers ({name})", len(texts)) as progress:
            progress.advance(len(kept))
            for index in range(len(kept) // size, -(-len(texts) // size)):
                made = generate(
                    loaded,
                    work.chat(loaded),
                    texts[index * size : (index + 1) * size],
                    Decoding(max_new_tokens, work.batch.generate),
                    progress=progress,
                )
                # An answer that is still a thought is none.
                found = [_Kept("" if one.unfinished else one.text, one.ended) for one in made]
                chunks.append(index, [list(one) for one in found])
                kept += found
        return kept

    return distill(rows, answer)
