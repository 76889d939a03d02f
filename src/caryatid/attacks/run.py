"""Behind `caryatid attack gcg`: behaviours and targets from files, results as the contract's JSON, resuming."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from caryatid.artifacts import content_key, read_json, write_json
from caryatid.attacks.gcg.search import GcgResult, gcg_search
from caryatid.attacks.gcg.state import GcgCase
from caryatid.attacks.saved import default_target
from caryatid.data.prompts import Prompt, Role
from caryatid.data.readers import decode, parse_json, read_prompt_file, read_user_bytes
from caryatid.errors import InputError, UsageError
from caryatid.models.load import LoadedModel
from caryatid.models.template import ChatFormat
from caryatid.progress import NO_PROGRESS, Progress

_FORMAT = 2  # of kept cases; raised when results get further fields


def read_targets(path: Path) -> dict[str, str]:
    """Targets by behaviour id from a JSON object {id: text, or list of texts}; of a list the first that is not empty.

    Raises:
        DataMissingError: no such file. InputError: not such an object.
    """
    value = parse_json(decode(read_user_bytes(path), path), str(path))
    if not isinstance(value, dict):
        raise InputError(
            "must be a JSON object", where=str(path), remedy='Write {"behavior id": "target", …}.'
        )
    targets = {}
    for name, entry in value.items():
        listed = entry if isinstance(entry, list) else [entry]
        # HarmBench's released lists hold a few empty strings.
        first = next((text for text in listed if text != ""), None)
        if not isinstance(first, str) or not first.strip():
            raise InputError(
                f"target of {name!r} is not text", where=str(path), remedy="Give a text or a list of texts."
            )
        targets[name] = first
    return targets


def gcg_cases(prompts: Iterable[Prompt], targets: Mapping[str, str] | None = None) -> list[GcgCase]:
    """One case per prompt: the target named for its id, else the prompt's first own one, else the default."""
    named = targets or {}
    return [
        GcgCase(
            behavior_id=prompt.id,
            user_text=prompt.user_text,
            target=named.get(prompt.id) or next(iter(prompt.targets), None) or default_target(prompt.text),
        )
        for prompt in prompts
    ]


def read_cases(behaviors: Path, targets: Path | None = None) -> list[GcgCase]:
    """Cases of a CSV of behaviours (HarmBench's columns, or `prompt` / `behavior` with generated ids).

    Raises:
        DataMissingError: a file is missing. InputError: it has no usable rows, or the targets name no behaviour of it.
    """
    prompts = read_prompt_file(behaviors, name="behaviors", role=Role.EVALUATION, label="harmful").prompts
    named = read_targets(targets) if targets else {}
    if named and not any(prompt.id in named for prompt in prompts):
        raise InputError(
            f"no target is for a behaviour of {behaviors}",
            where=str(targets),
            remedy="Use the behaviours' ids as keys.",
        )
    return gcg_cases(prompts, named)


def result_json(result: GcgResult) -> dict[str, Any]:
    """One case of the contract's object."""
    return {
        **asdict(result),
        "suffix_ids": list(result.suffix_ids),
        "losses": list(result.losses),
    }


def cases_json(results: Sequence[GcgResult]) -> dict[str, Any]:
    """The object that `caryatid attack gcg --json` prints."""
    return {"cases": [result_json(result) for result in results]}


def _kept(path: Path) -> GcgResult | None:
    if not path.is_file():
        return None
    value = read_json(path)
    return GcgResult(
        **{**value, "suffix_ids": tuple(value["suffix_ids"]), "losses": tuple(value["losses"])},
    )


def attack_gcg(
    loaded: LoadedModel,
    chat: ChatFormat,
    cases: Sequence[GcgCase],
    *,
    steps: int,
    width: int,
    top_k: int,
    batch_size: int,
    seed: int,
    suffix_length: int = 20,
    out: Path | None = None,
    progress: Progress = NO_PROGRESS,
) -> list[GcgResult]:
    """Search all cases; with `out`, finished cases are kept there and not searched again by a later call.

    A kept case is found by the model's identity and dtype, the system message, the case and the settings; the batch
    size is not among them. When all are done `out/results.json` holds the contract's object.

    Raises:
        InputError: no cases, or settings that cannot be used. UsageError: `out` cannot be written.
        NumericalError, MemoryExhaustedError: as `gcg_search`; finished cases stay kept.
    """
    if not cases:
        raise InputError("no behaviours to attack", where="GCG", remedy="Add rows to the file.")
    if steps < 0:
        raise InputError(f"steps {steps} is below 0", where="GCG")
    settings = {
        "format": _FORMAT,
        "model": loaded.identity,
        "dtype": str(loaded.dtype),
        "system": chat.system,
        "steps": steps,
        "width": width,
        "top_k": top_k,
        "seed": seed,
        "suffix_length": suffix_length,
    }
    files = [_case_file(out, settings, case) for case in cases]
    results = [None if file is None else _kept(file) for file in files]
    todo = [index for index, result in enumerate(results) if result is None]

    progress.start("gcg", len(cases) * steps)
    progress.advance((len(cases) - len(todo)) * steps)
    for index in todo:
        (found,) = gcg_search(
            loaded,
            chat,
            [cases[index]],
            steps=steps,
            width=width,
            top_k=top_k,
            batch_size=batch_size,
            seed=seed,
            suffix_length=suffix_length,
            progress=_Steps(progress),
        )
        results[index] = found
        if (file := files[index]) is not None:
            write_json(file, result_json(found))
    progress.done()
    finished = [result for result in results if result is not None]
    if out is not None:
        write_json(out / "results.json", cases_json(finished))
    return finished


class _Steps:
    """Passes on steps only: the task around it is started and ended elsewhere."""

    def __init__(self, outer: Progress) -> None:
        self.advance = outer.advance

    def start(self, label: str, total: int | None) -> None:
        pass

    def done(self) -> None:
        pass


def _case_file(out: Path | None, settings: Mapping[str, Any], case: GcgCase) -> Path | None:
    if out is None:
        return None
    folder = out / "cases"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"output folder cannot be written ({error.strerror})",
            where=str(out),
            remedy="Choose another one.",
        ) from error
    return folder / f"{content_key({**settings, 'case': asdict(case)})}.json"
