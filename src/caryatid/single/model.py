"""A model as notebooks use it: ask it, with interventions or without, evaluate it, and score its refusals."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..behaviour.evaluate import Evaluation, Judges, Wanted, evaluate
from ..behaviour.judges.base import Judge
from ..behaviour.judges.registry import open_refusal_judge
from ..behaviour.suites import Asking
from ..data.study_prompts import Source
from ..models.batch import plan_batch_sizes
from ..models.chat_options import ChatOptions
from ..models.check import check_loaded
from ..models.device_map import DeviceMap
from ..models.generate import Completion, Decoding, generate
from ..models.load import LoadedModel, load_model
from ..models.residual import Intervention
from ..models.template import ChatFormat
from .located import Located, LocateSettings

PLANNED_TOKENS = 512  # of a prompt and its answer, when batch sizes are chosen


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model.

    >>> model = load("embedded")
    >>> model.chat("What is the capital of France?", max_new_tokens=12)
    'The capital of France is Paris.'

    Attributes:
        loaded: model and tokenizer.
        system: the system message; None leaves it to the template.
    """

    loaded: LoadedModel
    system: str | None = None

    @property
    def format(self) -> ChatFormat:
        """How it is talked to."""
        return self.loaded.chat(self.system)

    def generate(
        self,
        texts: Sequence[str],
        *interventions: Intervention,
        max_new_tokens: int = 128,
        batch_size: int | None = None,
    ) -> list[Completion]:
        """Greedy answers to users' texts, in order.

        Args:
            texts: what users say; the chat template is put around each.
            interventions: `Carrier.ablate()`, `.add(alpha)`, …; they act on every token of all prompts and answers.
            max_new_tokens: token limit of an answer.
            batch_size: answers decoded at once; None: by the free memory.
        """
        decoding = Decoding(max_new_tokens, batch_size or self._batch_sizes().generate)
        return generate(self.loaded, self.format, texts, decoding, interventions=interventions)

    def chat(self, text: str, *interventions: Intervention, max_new_tokens: int = 128) -> str:
        """The greedy answer to one text."""
        return self.generate([text], *interventions, max_new_tokens=max_new_tokens, batch_size=1)[0].text

    def evaluate(
        self,
        *suites: str,
        limit: int = 0,
        max_new_tokens: int = 256,
        source: Source = "auto",
        seed: int = 0,
        judge: Judge | None = None,
    ) -> Evaluation:
        """Ask the prompts of suites and judge the answers; see `caryatid evaluate --help`.

        Args:
            suites: `harmbench`, `strongreject`, `xstest`, `utility`, … or `all`.
            limit: prompts of each; 0: all.
            max_new_tokens: token limit of every answer.
            source: where prompts come from.
            seed: of the choice of prompts.
            judge: of refusals; None: the offline rules.

        Raises:
            UsageError: no such suite. DataMissingError: its prompts are not here.
        """
        asking = Asking(max_new_tokens, self._batch_sizes().generate, self.system)
        wanted = Wanted(suites, source, limit=limit, seed=seed)
        return evaluate(self.loaded, wanted, asking, Judges(judge or open_refusal_judge()))

    def locate(
        self,
        *,
        settings: LocateSettings | None = None,
        out: Path | str | None = None,
        judge: Judge | None = None,
    ) -> Located:
        """Where it carries refusal; see `caryatid locate --help`.

        >>> found = load("org/model").locate(out="runs/locate-model")
        >>> found.facts["carrier"], found.facts["ablation"]["removed"]

        Args:
            settings: how much is measured; None: by its device.
            out: folder for finished steps, so that a stopped call goes on; None: nothing is kept.
            judge: of refusals; None: the offline rules.

        Raises:
            InputError: the residual stream of the model is not the sum of what its sublayers add.
        """
        from .locate import locate

        check_loaded(self.loaded, self.system)
        place = None if out is None else Path(out)
        return locate(self.loaded, settings, system=self.system, judge=judge, out=place)

    def _batch_sizes(self) -> Any:
        return plan_batch_sizes(self.loaded, PLANNED_TOKENS)

    def __repr__(self) -> str:
        loaded = self.loaded
        dtype = str(loaded.dtype).removeprefix("torch.")
        return f"Model({loaded.spec!r}, {dtype} on {loaded.device}, identity {loaded.identity[:12]})"


def load(
    spec: str,
    *,
    dtype: str | None = None,
    device: str | None = None,
    device_map: DeviceMap | None = None,
    revision: str | None = None,
    system: str | None = None,
    options: ChatOptions | None = None,
) -> Model:
    """Load a model: a hub id, a local folder, a `.gguf` file, an adapter folder, `embedded` or
    `embedded-refusing`.

    Args:
        spec: which one, as above.
        dtype: float32, bfloat16 or float16; None: float32 on a CPU, bfloat16 on CUDA.
        device: cpu, cuda, xpu or mps; None: the first accelerator that there is.
        device_map: instead of `device`: auto, balanced, … or a mapping, as transformers knows it; the blocks of a model
            that is too large for one GPU then lie on several.
        revision: of a hub model.
        system: the system message; None leaves it to the template, an empty one is sent as such.
        options: how its chat template is filled in: thinking, variables, date, which template.

    Raises:
        DataMissingError: it is not here. InputError: it cannot be used.
    """
    loaded = load_model(
        spec, dtype=dtype, device=device, device_map=device_map, revision=revision, options=options
    )
    return Model(loaded, system)
