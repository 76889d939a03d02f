"""Reading presets and configuration files; all errors at once, as `file:line:col: key: message`."""

import io
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from ..errors import ConfigError
from .part import model_of
from .schema import StudyConfig

METHOD = "method"  # of an attack; its settings stand in `options` beside it


def preset_names() -> list[str]:
    """The presets that ship with the package."""
    folder = resources.files("caryatid") / "presets"
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def load_config(
    *, preset: str | None = None, file: Path | None = None, overrides: Sequence[str] = ()
) -> StudyConfig:
    """A validated study configuration from a preset or a file, with `KEY=VALUE` overrides on top.

    A file may say `extends: PRESET`; its keys then replace those of the preset, mapping by mapping.

    Raises:
        ConfigError: unknown preset or key, wrong type, unreadable file; `problems` lists every finding.
    """
    if (preset is None) == (file is None):
        raise ConfigError(
            "name either a preset or a config file", remedy=f"Presets: {', '.join(preset_names())}."
        )
    values: dict[str, Any] = {}
    document: CommentedMap | None = None
    if file is not None:
        document = _parse(_read(file), str(file))
        values = _plain(document)
        preset = values.pop("extends", None)
    if preset is not None:
        where = "--preset" if file is None else f"{file}:{_position(document, ('extends',))}"
        values = _merged(_preset_values(preset, where), values)
    set_keys = {}
    of_preset = _preset_values(preset, "--preset") if overrides and preset is not None else {}
    for override in overrides:
        key, value = _override(override)
        set_keys[key] = override
        _assign(values, key, value, of_preset)
    return _validated(values, document, str(file) if file else f"preset {preset}", set_keys)


def dump_config(config: StudyConfig) -> str:
    """The resolved configuration as YAML."""
    yaml = YAML()
    yaml.default_flow_style = False
    stream = io.StringIO()
    yaml.dump(config.model_dump(mode="json"), stream)
    return stream.getvalue()


def parse_config(text: str, where: str) -> StudyConfig:
    """Read back a resolved configuration."""
    document = _parse(text, where)
    return _validated(_plain(document), document, where, {})


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"config file cannot be read ({error})", where=str(file), remedy="Check the path."
        ) from error


def _parse(text: str, where: str) -> CommentedMap:
    try:
        document = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise ConfigError(
            f"not YAML: {error.problem}", where=place, remedy="Mend the file's syntax."
        ) from error
    except YAMLError as error:
        raise ConfigError(f"not YAML: {error}", where=where, remedy="Mend the file's syntax.") from error
    if document is None:
        return CommentedMap()
    if not isinstance(document, CommentedMap):
        raise ConfigError(
            "must be a mapping of keys", where=f"{where}:1:1", remedy="See a preset for an example."
        )
    return document


def _plain(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    return node


def _preset_values(name: object, where: str) -> dict[str, Any]:
    names = preset_names()
    if name not in names:
        raise ConfigError(f"unknown preset {name!r}", where=where, remedy=f"Presets: {', '.join(names)}.")
    text = (resources.files("caryatid") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    values: dict[str, Any] = _plain(_parse(text, f"preset {name}"))
    parent = values.pop("extends", None)
    return _merged(_preset_values(parent, f"preset {name}"), values) if parent else values


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = _kept_beside(below, above.get(METHOD))
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = (
            _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
        )
    return merged


def _kept_beside(below: Mapping[str, Any], method: object) -> dict[str, Any]:
    """What stays of settings where a method is named beside them: `options` are those of the method that had them."""
    other = method is not None and method != below.get(METHOD, method)
    return {key: value for key, value in below.items() if key != "options" or not other}


def _override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"--set {text!r} is not KEY=VALUE", remedy="For example --set training.learning_rate=1e-4."
        )
    try:
        parsed = YAML(typ="safe").load(value)
    except YAMLError as error:
        raise ConfigError(f"--set {text!r}: the value is not YAML", remedy="Quote it.") from error
    return key.strip(), _as_number(parsed)


def _as_number(value: Any) -> Any:
    """YAML 1.2 reads `1e-4` as text; people mean a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _assign(values: dict[str, Any], key: str, value: Any, of_preset: Any) -> None:
    """Set a value; where it names another method, the preset's `options` beside it fall away."""
    *parents, leaf = key.split(".")
    place = values
    for parent in parents:
        below = place.get(parent)
        if not isinstance(below, dict):
            below = {}
            place[parent] = below
        place = below
    for parent in parents:
        of_preset = of_preset.get(parent, {}) if isinstance(of_preset, dict) else {}
    if leaf == METHOD and isinstance(of_preset, dict) and value != of_preset.get(METHOD, value):
        theirs, own = of_preset.get("options", {}), place.get("options")
        if isinstance(own, dict):
            place["options"] = {name: one for name, one in own.items() if (name, one) not in theirs.items()}
    place[leaf] = value


def _validated(
    values: Mapping[str, Any], document: CommentedMap | None, where: str, set_keys: Mapping[str, str]
) -> StudyConfig:
    try:
        return StudyConfig.model_validate(values)
    except ValidationError as error:
        problems = tuple(
            dict.fromkeys(_problem(entry, document, where, set_keys) for entry in _distinct(error))
        )
        raise ConfigError("; ".join(problems), problems=problems) from error


def _distinct(error: ValidationError) -> list[Any]:
    """Pydantic reports every branch of a union; keep one finding per place, the most specific: not that of a branch
    for another type of value."""
    found: dict[tuple[Any, ...], Any] = {}
    for entry in error.errors():
        place = tuple(part for part in entry["loc"] if not _is_branch(part))
        if place not in found or (_other_type(found[place]) and not _other_type(entry)):
            found[place] = {**entry, "loc": place}
    return [
        entry
        for place, entry in found.items()
        if not any(len(other) > len(place) and other[: len(place)] == place for other in found)
    ]


def _other_type(entry: Any) -> bool:
    return str(entry["type"]).endswith("_type")


def _is_branch(part: object) -> bool:
    """Whether a location part names a branch of a union and not a key."""
    return isinstance(part, str) and ("[" in part or part == "ObservedAnchor")


def _problem(entry: Any, document: CommentedMap | None, where: str, set_keys: Mapping[str, str]) -> str:
    loc = entry["loc"]
    key = ".".join(str(part) for part in loc)
    message = _message(entry)
    for set_key, text in set_keys.items():
        if key == set_key or key.startswith(f"{set_key}.") or set_key.startswith(f"{key}."):
            return f"--set {text}: {key}: {message}"
    place = _position(document, loc)
    head = f"{where}:{place}" if place else where
    return f"{head}: {key}: {message}" if key else f"{head}: {message}"


def _message(entry: Any) -> str:
    if entry["type"] == "extra_forbidden":
        return f"unknown key{_suggestion(entry['loc'])}"
    text = str(entry["msg"]).removeprefix("Value error, ")
    if entry["type"] == "model_type":
        text = "must be a mapping of keys"
    given = entry.get("input")
    if isinstance(given, str | int | float | bool) or given is None:
        return f"{text}, got {given!r}"
    return text


def _suggestion(loc: Sequence[Any]) -> str:
    from difflib import get_close_matches

    model: Any = StudyConfig
    for part in loc[:-1]:
        info = getattr(model, "model_fields", {}).get(part)
        if info is None:
            return ""
        kind: Any = info.annotation
        model = model_of(kind) if hasattr(kind, "__dataclass_fields__") else kind
    fields = list(getattr(model, "model_fields", {}))
    close = get_close_matches(str(loc[-1]), fields, n=1)
    return (
        f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(fields)}" if fields else ""
    )


def _position(document: CommentedMap | None, loc: Sequence[Any]) -> str | None:
    """`line:col` of the key (or list item) that `loc` names, or of its nearest ancestor in the file."""
    node: Any = document
    found: str | None = None
    for part in loc:
        if isinstance(node, CommentedMap) and part in node:
            line, column = node.lc.key(part)
        elif isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node):
            line, column = node.lc.item(part)
        else:
            break
        found = f"{line + 1}:{column + 1}"
        node = node[part]
    return found
