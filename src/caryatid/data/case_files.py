"""Files of attack cases: our own, what `caryatid attack gcg` prints or keeps, and HarmBench's test cases."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..artifacts import canonical_json
from ..errors import InputError
from .user_files import decode, encodable, parse_json, read_user_bytes

_REMEDY = "Give the output of `caryatid attack gcg --json`, saved cases, or HarmBench's test_cases.json."


def read_case_suffixes(path: Path, user_texts: Mapping[str, str]) -> dict[str, str]:
    """What follows each behaviour, after one space, in the text that is sent.

    Read are saved cases (checksum verified), the object that `caryatid attack gcg --json` prints, and HarmBench's
    `test_cases.json` ({behaviour id: [whole text, …]}), whose texts must begin with the behaviour.

    Args:
        user_texts: the text of every behaviour that will be asked, by id.

    Returns:
        suffixes by behaviour id, of those behaviours of the file that are in `user_texts`.

    Raises:
        DataMissingError: no such file.
        InputError: another format, changed since it was written, several cases for one behaviour, a text that does not
            begin with its behaviour, or no behaviour of `user_texts` in it.
    """
    value = parse_json(decode(read_user_bytes(path), path), str(path))
    if not isinstance(value, dict):
        raise InputError("not a file of attack cases", where=str(path), remedy=_REMEDY)
    found = _own(value, path) if "cases" in value else _harmbench(value, user_texts, path)
    chosen = {name: suffix for name, suffix in found.items() if name in user_texts}
    if not chosen:
        shown = ", ".join(list(found)[:3])
        raise InputError(
            f"none of its {len(found)} behaviours ({shown}, …) is asked",
            where=str(path),
            remedy="Use cases for the behaviours of the suite (HarmBench's ids).",
        )
    return chosen


def _own(value: Mapping[str, Any], path: Path) -> dict[str, str]:
    stored = {key: item for key, item in value.items() if key != "sha256"}
    if "sha256" in value and hashlib.sha256(canonical_json(stored).encode()).hexdigest() != value["sha256"]:
        raise InputError(
            "the test cases were changed after they were written (checksum differs)",
            where=str(path),
            remedy="Restore the file, or make the cases anew.",
        )
    found: dict[str, str] = {}
    rows = value["cases"] if isinstance(value["cases"], list) else []
    for number, row in enumerate(rows, start=1):
        where = f"{path}, case {number}"
        name, suffix = (row.get(k) if isinstance(row, dict) else None for k in ("behavior_id", "suffix_text"))
        if not isinstance(name, str) or not isinstance(suffix, str):
            raise InputError("no `behavior_id` and `suffix_text`", where=where, remedy=_REMEDY)
        if name in found:
            raise InputError(f"a second case for {name}", where=where, remedy="Keep one for each behaviour.")
        found[name] = encodable(suffix, where)
    if not found:
        raise InputError("no attack cases", where=str(path), remedy=_REMEDY)
    return found


def _harmbench(value: Mapping[str, Any], user_texts: Mapping[str, str], path: Path) -> dict[str, str]:
    found = {}
    for name, listed in value.items():
        where = f"{path}, {name}"
        texts = [listed] if isinstance(listed, str) else listed
        if not isinstance(texts, list) or not texts:
            raise InputError("no list of test cases", where=where, remedy=_REMEDY)
        given = [one.get("test_case") if isinstance(one, dict) else one for one in texts]
        if len(given) > 1:
            raise InputError(
                f"{len(given)} test cases for one behaviour",
                where=where,
                remedy="Keep one for each behaviour.",
            )
        if not isinstance(given[0], str):
            raise InputError("its test case is no text", where=where, remedy=_REMEDY)
        begins = user_texts.get(name, "")
        if not given[0].startswith(begins):
            raise InputError(
                "its text does not begin with the behaviour, so that it is no suffix attack",
                where=where,
                remedy="Send such texts as prompts: a CSV with `id` and `prompt` and the direct suite.",
            )
        found[str(name)] = encodable(given[0][len(begins) :].removeprefix(" "), where)
    return found
