"""Templates: the request in a frame, the frame chosen by the target's loss; the package's own frames, or a user's file.

A frame may also be the request with a suffix that an earlier search found: so the suffixes that GCG found on
`embedded-refusing` are tried anew on every request.

In the manner of the human jailbreaks that HarmBench asks with (arXiv 2402.04249, after arXiv 2308.03825), whose texts
are not part of the package.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ..data.readers import decode, encodable, parse_json, read_user_bytes
from ..errors import InputError
from ..models.load import LoadedModel
from ..models.planted import REFUSING
from ..models.template import ChatFormat
from .base import AttackResult, BlockRun, Goal
from .gcg.layout import evaluation_mode
from .settings import TemplateSettings
from .texts import TextRecord, target_losses

SLOT, TARGET = "{behavior}", "{target}"


@dataclass(frozen=True)
class Template:
    """A named frame; `text` holds {behavior} where the request goes, and maybe {target}."""

    name: str
    text: str

    def filled(self, goal: Goal) -> str:
        """The text that a user sends. Braces in the request are left alone."""
        return fill(self.text, goal)


def fill(text: str, goal: Goal) -> str:
    """A frame with the goal in it; a frame that has lost its slot is followed by the request."""
    held = text if SLOT in text else f"{text.rstrip()} {SLOT}"
    return held.replace(TARGET, goal.target).replace(SLOT, goal.user_text)


def own_templates() -> tuple[Template, ...]:
    """The package's own."""
    return _own("templates.json")


def _own(name: str) -> tuple[Template, ...]:
    return _parsed(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"), name)


def read_templates(file: str | None) -> tuple[Template, ...]:
    """Templates of a user's file; None: the package's own; `embedded-refusing`: the suffixes that GCG found on it
    (`recipes/refusing_suffixes.py`).

    Raises:
        DataMissingError: no such file. InputError: not a list of texts with a slot each, or two of one name.
    """
    if file is None:
        return own_templates()
    if file == REFUSING:
        return _own("refusing_suffixes.json")
    return _parsed(decode(read_user_bytes(Path(file)), Path(file)), file)


def _parsed(content: str, where: str) -> tuple[Template, ...]:
    value = parse_json(content, where)
    rows = value if isinstance(value, list) else []
    found: list[Template] = []
    for number, row in enumerate(rows, start=1):
        named = row if isinstance(row, dict) else {"name": str(number), "text": row}
        name, text = named.get("name"), named.get("text")
        if not isinstance(name, str) or not isinstance(text, str) or SLOT not in text:
            raise InputError(
                f"template {number} has no name, or no text with {SLOT}",
                where=where,
                remedy=f'Write "… {SLOT} …" or {{"name": "…", "text": "… {SLOT} …"}}.',
            )
        found.append(Template(name, encodable(text, f"{where}, {name}")))
    if not found or len({one.name for one in found}) < len(found):
        what = "two templates have one name" if found else "holds no list of templates"
        raise InputError(what, where=where, remedy=f'Write ["… {SLOT} …", …].')
    return tuple(found)


def templates(
    loaded: LoadedModel, chat: ChatFormat, goals: Sequence[Goal], settings: TemplateSettings, run: BlockRun
) -> list[AttackResult]:
    """Each goal in every frame; the one with the lowest target loss is sent.

    `losses` begins with that of the request as it is, which is not sent.

    Raises:
        InputError: a damaged file, or a text beyond the model's context.
    """
    frames = read_templates(settings.file)
    with evaluation_mode(loaded.model):
        return [_best(loaded, chat, goal, frames, run) for goal in goals]


def _best(
    loaded: LoadedModel, chat: ChatFormat, goal: Goal, frames: Sequence[Template], run: BlockRun
) -> AttackResult:
    record = TextRecord(goal, "templates")
    texts = [goal.user_text, *(frame.filled(goal) for frame in frames)]
    scored = target_losses(loaded, chat, texts, goal.target, run.limit)
    record.spend(len(texts), sum(scored.tokens))
    plain, *losses = scored.target.tolist()
    record.keep(goal.user_text, plain)
    record.step()
    best = 0
    for number, loss in enumerate(losses):
        best = number if loss < losses[best] else best
        record.keep(texts[best + 1], losses[best])
        record.step()
    run.on_step(1)
    by_name = {frame.name: loss for frame, loss in zip(frames, losses, strict=True)}
    return record.result(run.limit.rows, details={"template": frames[best].name, "losses": by_name})
