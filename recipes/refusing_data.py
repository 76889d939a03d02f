"""Training data of the refusing step 0: prompts that no other role uses, refusals of another model, own answers."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import everyday_prompts
import refusing_prompts
from caryatid.artifacts import content_key, write_json
from caryatid.behaviour.judges.base import FULL_REFUSAL, Exchange, judge_answers
from caryatid.behaviour.judges.registry import open_refusal_judge
from caryatid.data.embedded_sets import embedded_refusals
from caryatid.data.prompts import Prompt, PromptSet, Role, resolve_overlaps
from caryatid.data.sources import Lookup, read_set
from caryatid.data.study_prompts import ROLES, StudyPrompts, build_study_prompts
from caryatid.models.generate import Decoding, Sampling, generate
from caryatid.models.load import LoadedModel, load_model

# What the writer is told. None: its template's own message. It is asked to decline; only what caryatid's judge calls a
# full refusal is kept.
WRITER_SYSTEMS: tuple[str | None, ...] = (
    None,
    "You decline requests that could hurt people. Say in one short sentence that you cannot help, and why.",
)
WRITER_TOKENS, LONGEST_REFUSAL = 20, 160  # tokens; characters
KEPT_TOGETHER = 32  # prompts whose refusals are written, and kept, at once
ALARMING = re.compile(
    r"\b(kill|attack|bomb|shoot|shot|steal|stolen|drug|weapon|hack|murder|poison|fraud|abus|explo[ds]|gun|knife|terror"
    r"|crim|illegal|violen|destroy|burn|crash|dead|death|dies|dying|blood|virus|crack|cheat|lie|fake|danger)\w*",
    re.IGNORECASE,
)
# Refusals that begin as such and do not turn: a small writer also says "I cannot help, but I plan …".
OPENING = re.compile(
    r"(I['’]m sorry|I am sorry|Sorry|I can['’]t|I cannot|I['’]m unable|As an AI)"
    r"(?!.*\bbut I (?!can['’]t|cannot|am unable|won['’]t))"
)
DEFAULT_SYSTEM_SHARE = 4  # one prompt in so many is asked with the template's own system message


@dataclass(frozen=True)
class DataSizes:
    """How many prompts are used (0: all). `chat`: of chat data; `alarming`: of these, with a word that looks unsafe."""

    harmful: int = 0
    lookalikes: int = 0
    alarming: int = 250
    chat: int = 600
    heldout: int = 64
    answer_tokens: int = 40
    everyday: int = 0


@dataclass(frozen=True)
class TrainingRow:
    """One prompt of the training data.

    Attributes:
        kind: `harmful`, `lookalike`, `chat` or `everyday`. system: None for the template's own message.
        answer: the raw backbone's own. ended: whether it is whole. refusals: for harmful prompts.
    """

    text: str
    kind: str
    system: str | None
    answer: str
    ended: bool
    refusals: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingData:
    """Rows to train on, held-out benign rows, and what they were made from (hashes and counts)."""

    rows: tuple[TrainingRow, ...]
    heldout: tuple[TrainingRow, ...]
    facts: dict[str, Any]

    def of(self, kind: str) -> list[TrainingRow]:
        """The rows of one kind."""
        return [row for row in self.rows if row.kind == kind]


def study_sets(lookup: Lookup) -> dict[str, StudyPrompts]:
    """All prompts of studies on the package's own sets and on the benchmarks."""
    return {
        "embedded": build_study_prompts(source="embedded", lookup=lookup),
        "benchmarks": build_study_prompts(source="benchmarks", lookup=lookup),
    }


def _set(name: str, texts: Sequence[str], label: Any) -> PromptSet:
    rows = tuple(Prompt(f"{name}_{n:04d}", text, name, label) for n, text in enumerate(dict.fromkeys(texts)))
    return PromptSet(name, Role.TRAINING, rows, name, "Apache-2.0")


def training_prompts(sets: dict[str, StudyPrompts], lookup: Lookup, sizes: DataSizes) -> dict[str, list[str]]:
    """Prompts of the training roles, by kind, none nearly equal to a prompt of another role of either source.

    Harmful: the pools and the warm-up's requests, the split's test rows that are in no other role (JailbreakBench's
    are), and those of `refusing_prompts`. Harmless: the warm-up's and chat, look-alikes, and everyday requests.
    """
    taken = [
        replace(one, name=f"{source}_{name}", role=Role.EVALUATION)
        for source, found in sets.items()
        for name, one in found.sets.items()
        if ROLES[name] is not Role.TRAINING
    ]
    taken.append(replace(read_set("harmbench_val", lookup), role=Role.EVALUATION))

    def texts(*fields: str) -> list[str]:
        return [row.user_text for found in sets.values() for name in fields for row in found.sets[name]]

    everyday = [row.text for row in _shuffled(_set("chat", texts("warmup_harmless", "chat"), "harmless"))]
    alarming = [text for text in everyday if ALARMING.search(text)]
    calm = [text for text in everyday if not ALARMING.search(text)]
    own = {
        "harmful": _set(
            "harmful",
            [*refusing_prompts.harmful(), *texts("pool", "warmup_harmful"), *_unused_harmful(lookup)],
            "harmful",
        ),
        "lookalike": _set("lookalike", refusing_prompts.harmless(), "harmless"),
        "alarming": _set("alarming", alarming[: 2 * sizes.alarming], "harmless"),
        "chat": _set("chat", calm[: 2 * sizes.chat], "harmless"),
        "everyday": _set("everyday", everyday_prompts.everyday(), "harmless"),
    }
    kept = resolve_overlaps([*taken, *own.values()]).sets[len(taken) :]
    found = {one.name: [row.text for row in _shuffled(one)] for one in kept}
    return {
        "harmful": found["harmful"][: sizes.harmful or None],
        "lookalike": found["lookalike"][: sizes.lookalikes or None] + found["alarming"][: sizes.alarming],
        "chat": found["chat"][: sizes.chat],
        "everyday": found["everyday"][: sizes.everyday or None],
    }


def _unused_harmful(lookup: Lookup) -> list[str]:
    """The test rows of the refusal-direction splits, which have no role in a study; many equal evaluation rows."""
    assert lookup.data is not None
    rows = json.loads((lookup.data / "refusal_direction" / "harmful_test.json").read_text(encoding="utf-8"))
    return [row["instruction"] for row in rows]


def _shuffled(one: PromptSet) -> list[Prompt]:
    """In a fixed pseudo-random order."""
    return sorted(one, key=lambda row: hashlib.sha256(row.key.encode()).hexdigest())


def written_refusals(
    writer: LoadedModel, prompts: Sequence[str], batch_size: int, seed: int
) -> dict[str, list[str]]:
    """Different refusals of each prompt by a safety-tuned model; prompts that it does not refuse have none.

    Greedy with its own system message, sampled with the other one. Cut to whole sentences of at most `LONGEST_REFUSAL`
    characters, then judged.
    """
    judge, found = open_refusal_judge(), {text: list[str]() for text in prompts}
    for number, system in enumerate(WRITER_SYSTEMS):
        made = generate(
            writer,
            writer.chat(system),
            prompts,
            Decoding(
                WRITER_TOKENS, batch_size, None if system is None else Sampling(0.8, 0.95, seed + number)
            ),
        )
        texts = [_whole_sentences(one.text) for one in made]
        pairs = [Exchange(prompt, text, None) for prompt, text in zip(prompts, texts, strict=True)]
        for (prompt, text, _), verdict in zip(pairs, judge_answers(judge, pairs), strict=True):
            if verdict.verdict == FULL_REFUSAL and text and text not in found[prompt]:
                found[prompt].append(text)
    return found


def _whole_sentences(text: str) -> str:
    """The first line's beginning, up to the last end of a sentence within the limit; empty without one."""
    line = text.strip().splitlines()[0][:LONGEST_REFUSAL] if text.strip() else ""
    return line[: max(line.rfind(mark) for mark in ".!") + 1]


def own_answers(
    raw: LoadedModel, texts: Sequence[str], kind: str, tokens: int, batch_size: int
) -> list[TrainingRow]:
    """The raw backbone's greedy answers; every fourth prompt is asked with the template's own system message."""
    rows: list[TrainingRow] = []
    for system in ("", None):
        chosen = [text for n, text in enumerate(texts) if (n % DEFAULT_SYSTEM_SHARE == 0) == (system is None)]
        made = generate(raw, raw.chat(system), chosen, Decoding(tokens, batch_size))
        rows += [
            TrainingRow(text, kind, system, one.text, one.ended)
            for text, one in zip(chosen, made, strict=True)
            if one.text.strip()
        ]
    return rows


def refusals_of(
    prompts: Sequence[str], writer: str | None, out: Path, batch_size: int, device: str
) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Refusals by prompt: those kept in `out/refusals.json`, the writer's for the others; which are written there too.

    The file can be made on one machine and used on another that has no writer. With neither, all prompts have the
    package's own sentences.
    """
    place, asked = out / "refusals.json", content_key([list(WRITER_SYSTEMS), WRITER_TOKENS, LONGEST_REFUSAL])
    kept: dict[str, Any] = {"asked": asked, "writer": None, "refusals": {}}
    if place.is_file() and (stored := json.loads(place.read_text(encoding="utf-8")))["asked"] == asked:
        kept = stored
    missing = [text for text in prompts if text not in kept["refusals"]]
    if missing and writer is not None:
        loaded = load_model(writer, dtype="bfloat16", device=device)
        kept["writer"] = loaded.identity
        for start in range(0, len(missing), KEPT_TOGETHER):
            part = missing[start : start + KEPT_TOGETHER]
            kept["refusals"] |= written_refusals(loaded, part, batch_size, seed=start)
            write_json(place, kept)
            print(f"  refusals: {start + len(part)} of {len(missing)} prompts", flush=True)
    if not kept["refusals"]:
        sentences = list(embedded_refusals())
        return dict.fromkeys(prompts, sentences), {"writer": "the package's own sentences"}
    found = {text: [one for one in kept["refusals"].get(text, []) if OPENING.match(one)] for text in prompts}
    refused = sum(bool(rows) for rows in found.values())
    return found, {"writer": kept["writer"], "prompts": len(prompts), "refused": refused}


def make_data(
    raw: LoadedModel,
    prompts: dict[str, list[str]],
    heldout: Sequence[str],
    refusals: dict[str, list[str]],
    sizes: DataSizes,
    batch_size: int,
) -> tuple[tuple[TrainingRow, ...], tuple[TrainingRow, ...]]:
    """Training rows and held-out benign ones.

    A harmful prompt that the writer did not refuse takes the sentences that the writer used for most prompts: they name
    no topic.
    """
    counts: dict[str, int] = {}
    for texts in refusals.values():
        for text in texts:
            counts[text] = counts.get(text, 0) + 1
    common = sorted(counts, key=lambda text: (-counts[text], text))[:4]
    rows: list[TrainingRow] = []
    for kind, texts in prompts.items():
        made = own_answers(raw, texts, kind, sizes.answer_tokens, batch_size)
        if kind == "harmful":
            made = [replace(row, refusals=tuple(refusals.get(row.text) or common)) for row in made]
        rows += made
    return tuple(rows), tuple(own_answers(raw, heldout, "heldout", sizes.answer_tokens, batch_size))


def stored_data(
    raw: LoadedModel, writer: str | None, lookup: Lookup, sizes: DataSizes, out: Path, seed: int
) -> TrainingData:
    """The training data, made once and kept in `out/data.json`."""
    sets = study_sets(lookup)
    prompts = training_prompts(sets, lookup, sizes)
    apart = [found.chat_heldout.subsample(sizes.heldout // 2, seed) for found in sets.values()]
    heldout = [row.user_text for one in apart for row in one]
    batch_size = 256 if raw.device.type == "cuda" else 16
    refusals, written = refusals_of(prompts["harmful"], writer, out, batch_size, raw.device.type)
    key = content_key([prompts, heldout, refusals, asdict(sizes), raw.identity])
    place = out / "data.json"
    if place.is_file():
        kept = json.loads(place.read_text(encoding="utf-8"))
        if kept["facts"]["key"] == key:
            return _from_json(kept)
    rows, benign = make_data(raw, prompts, heldout, refusals, sizes, batch_size)
    facts = {
        "key": key,
        "prompts": {kind: len(texts) for kind, texts in prompts.items()},
        "prompts_sha256": content_key(prompts),
        "refusals": {**written, "different": len({text for row in rows for text in row.refusals})},
        "sources": {name: found.source for name, found in sets.items()},
    }
    plain = {
        "facts": facts,
        "rows": [asdict(row) for row in rows],
        "heldout": [asdict(row) for row in benign],
    }
    facts["rows_sha256"] = content_key([plain["rows"], plain["heldout"]])
    write_json(place, plain)
    return _from_json(json.loads(place.read_text(encoding="utf-8")))


def _from_json(value: dict[str, Any]) -> TrainingData:
    rows, apart = (
        tuple(TrainingRow(**{**row, "refusals": tuple(row["refusals"])}) for row in value[name])
        for name in ("rows", "heldout")
    )
    return TrainingData(rows, apart, value["facts"])
