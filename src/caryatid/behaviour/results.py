"""Other tools' result files: HarmBench's completions and results, and the runs of AdversariaLLM.

HarmBench: JSON `{behaviour id: [{"test_case", "generation", "label"?}, …]}` (its `completions/*.json` and
`results/*.json`). AdversariaLLM: a `run.json`, or a folder with such files anywhere below, with `runs` of
`original_prompt` (a conversation) and `steps` of `model_input` and `model_completions`; of an attack's steps the one of
the lowest loss is read, or the last where there is no loss.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..data.near import normalise
from ..data.prompts import Prompt
from ..data.readers import decode, parse_json, read_user_bytes
from ..errors import DataMissingError, InputError
from .answers import AnswerRow, Attack
from .suites import Answer, answer_row

_LAYOUTS = "Give HarmBench's completions or results (JSON by behaviour id), or AdversariaLLM's run.json."


class GivenAnswer(NamedTuple):
    """An answer of a result file.

    Attributes:
        where: file and place in it. behaviour: id, where the file has ids. request: as a person would state it, where
            the file has it apart. sent: what the model was sent; empty where the file does not say. text: its answer.
    """

    where: str
    behaviour: str | None
    request: str | None
    sent: str
    text: str


def read_results(path: Path) -> list[GivenAnswer]:
    """The answers of a result file, or of a folder of AdversariaLLM's runs, in order.

    Raises:
        DataMissingError: no such file, or a folder without `run.json`. InputError: neither layout, or no answers.
    """
    if path.is_dir():
        files = sorted(path.rglob("run.json"))
        if not files:
            raise DataMissingError("no run.json below it", where=str(path), remedy=_LAYOUTS)
    else:
        files = [path]
    found = [one for file in files for one in _read(file)]
    if not found:
        raise InputError("no answers", where=str(path), remedy=_LAYOUTS)
    return found


def _read(path: Path) -> Iterator[GivenAnswer]:
    content = parse_json(decode(read_user_bytes(path), path), str(path))
    if isinstance(content, dict) and isinstance(content.get("runs"), list):
        for number, run in enumerate(content["runs"], start=1):
            yield from _of_run(run, f"{path}, run {number}")
    elif isinstance(content, dict) and all(isinstance(rows, list) for rows in content.values()):
        for name, rows in content.items():
            for number, row in enumerate(rows, start=1):
                yield _of_behaviour(name, row, f"{path}, {name} {number}")
    else:
        raise InputError("not a known layout", where=str(path), remedy=_LAYOUTS)


def _of_behaviour(name: str, row: Any, where: str) -> GivenAnswer:
    if not isinstance(row, dict) or not isinstance(row.get("generation"), str):
        raise InputError("no `generation`", where=where, remedy=_LAYOUTS)
    sent = row.get("test_case")
    return GivenAnswer(where, name, None, sent if isinstance(sent, str) else "", row["generation"])


def _of_run(run: Any, where: str) -> Iterator[GivenAnswer]:
    try:
        steps = [step for step in run["steps"] if step["model_completions"]]
        losses = [step.get("loss") for step in steps]
        if any(loss is None for loss in losses):
            losses = list(range(len(steps), 0, -1))  # without losses, the last step
        chosen = [min(zip(losses, steps, strict=True), key=lambda one: one[0])[1]] if steps else []
        request = _said(run["original_prompt"])
        for step in chosen:
            sent = _said(step.get("model_input") or run["original_prompt"])
            for text in step["model_completions"]:
                yield GivenAnswer(where, None, request, sent, text)
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"not a run of AdversariaLLM ({error!r})", where=where, remedy=_LAYOUTS) from error


def _said(conversation: Sequence[Mapping[str, str]]) -> str:
    """The last thing that the user says."""
    return [turn["content"] for turn in conversation if turn["role"] == "user"][-1]


def result_answers(
    path: Path, suites: Mapping[str, Sequence[Prompt]], attack: Attack = "fixed_source"
) -> list[AnswerRow]:
    """Answers of a result file to the prompts of suites, not yet judged, in the prompts' order.

    An answer belongs to the prompt of its behaviour id, else to that of its request. What was sent as the prompt is
    counts as `direct`, anything else as `attack`; several answers to one prompt are samples. A prompt without an answer
    is left out.

    Raises:
        DataMissingError, InputError: as `read_results`, or an answer that belongs to none of the prompts.
    """
    asked = [(suite, prompt) for suite, prompts in suites.items() for prompt in prompts]
    by_id = {prompt.id: place for place, (_, prompt) in reversed(list(enumerate(asked)))}
    by_text = {
        normalise(text): place
        for place, (_, prompt) in reversed(list(enumerate(asked)))
        for text in (prompt.text, prompt.user_text)
    }
    grouped: dict[tuple[int, Attack], list[GivenAnswer]] = {}
    for one in read_results(path):
        known = (
            by_id.get(one.behaviour)
            if one.behaviour is not None
            else by_text.get(normalise(one.request or ""))
        )
        if known is None:
            named = one.behaviour or one.request or ""
            raise InputError(
                f"{named[:60]!r} is none of the {len(asked)} prompts",
                where=one.where,
                remedy="Name the suites (and no --limit) that it was answered for.",
            )
        prompt = asked[known][1]
        direct = one.sent.strip() in ("", prompt.user_text.strip(), prompt.text.strip())
        grouped.setdefault((known, "direct" if direct else attack), []).append(one)
    return [
        answer_row(asked[place][1], asked[place][0], how, one.sent or asked[place][1].user_text,
                   Answer(one.text, 0, True), number)
        for place, how in sorted(grouped)
        for number, one in enumerate(grouped[place, how])
    ]  # fmt: skip
