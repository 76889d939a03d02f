"""What is settled when a study is planned, as its run directory records it; read without any model library."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from ..artifacts import DAMAGED_RUN, RunDirectory
from ..attacks.gcg.settings import Ranking, SearchPrecision
from ..errors import CaryatidError, InputError
from ..models.planted import PLANTED
from ..models.sizes import BatchSizes


@dataclass(frozen=True)
class Facts:
    """What is settled when a study is planned, recorded in the manifest and reused on resume.

    Attributes:
        batch: sizes by use. observed_identities: of somebody else's checkpoints, in order. chat_sha256: of the user's
            chat file, empty without one. float8: whether the device can rank the backbone's GCG candidates in float8;
            False in runs begun before this was recorded, which go on with 8 rescored. planted: whether the backbone
            or a checkpoint is, or builds on, `embedded-refusing`; not compared, as it follows from their identities.
    """

    model_identity: str
    dtype: str
    device: str
    prompts_source: Literal["benchmarks", "embedded"]
    prompts_note: str
    prompts_sha256: str
    batch: Mapping[str, int]
    observed_identities: tuple[str, ...] = ()
    chat_sha256: str = ""
    float8: bool = False
    planted: bool = field(default=False, compare=False)

    def ranking(self, wanted: SearchPrecision) -> Ranking:
        """The precision by which a search decides how many candidates it rescores; where none ranks them it does not
        matter."""
        return "float8" if self.float8 and wanted == "float8" else "bfloat16"

    @property
    def notes(self) -> list[str]:
        """What must be said beside every result of the study."""
        return [PLANTED] if self.planted else []

    def to_json(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        plain = {"batch": dict(self.batch), "observed_identities": list(self.observed_identities)}
        return {**vars(self), **plain}

    @classmethod
    def from_json(cls, value: Any, where: str = "facts") -> "Facts":
        """Read back what `to_json` wrote.

        Raises:
            InputError: it is something else; names `where`.
        """
        try:
            facts = TypeAdapter(cls).validate_python(value)
            BatchSizes(**facts.batch)
        except (ValidationError, TypeError, CaryatidError) as error:
            place, what = "batch", str(error)
            if isinstance(error, ValidationError):
                place, what = ".".join(map(str, error.errors()[0]["loc"])), error.errors()[0]["msg"]
            key = f"facts.{place}".rstrip(".")
            raise InputError(f"damaged: {key}: {what}", where=where, remedy=DAMAGED_RUN) from error
        return facts

    @classmethod
    def of_run(cls, run: RunDirectory) -> "Facts":
        """The facts in a run directory's manifest.

        Raises:
            InputError: the manifest is damaged.
        """
        return cls.from_json(run.manifest().get("facts"), str(run.manifest_path))
