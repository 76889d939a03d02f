"""A model's predictions along given answers, and what an intervention does to them: KL and negative log-likelihood."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..models.load import LoadedModel
from .grid import UNTOUCHED, GridBatch, evaluate_grid

LAST_KL, MEAN_KL, NLL = 0, 1, 2  # columns of `AnswerReference.compare`

_CHUNK_ELEMENTS = 2**23  # float32 logits that are compared at once …
_CPU_CHUNK_ELEMENTS = 2**21  # … few enough there that the steps find them in the cache


class AnswerReference:
    """The base model's distributions along given answers, for KL(base ‖ changed).

    Attributes:
        seqs: the prompts followed by their answers (cut at `answer_tokens`) without the last token.
        keep: length of the longest answer. counts: length of each. The last `counts` positions of a row predict its
            answer; the first of them is the last prompt position.
        base: what `compare` gives for the base model itself; its KL is 0.

    Raises:
        InputError: an empty answer, or not one answer per prompt.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        *,
        answer_tokens: int,
        batch_size: int,
    ) -> None:
        if len(prompts) != len(answers):
            raise InputError(f"{len(answers)} answers for {len(prompts)} prompts", where="answers")
        if answer_tokens < 1 or min(map(len, answers), default=0) == 0:
            raise InputError("an empty answer, or none of its tokens, cannot be followed", where="answers")
        cut = [list(answer[:answer_tokens]) for answer in answers]
        self.seqs = [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, cut, strict=True)]
        self.counts = torch.tensor([len(answer) for answer in cut], device=loaded.device)
        self.keep = int(self.counts.max())
        rows = [[0] * (self.keep - len(answer)) + answer for answer in cut]
        self._ids = torch.tensor(rows, device=loaded.device)  # [prompts, keep], to the right edge
        logprobs = evaluate_grid(
            loaded,
            self.seqs,
            [UNTOUCHED],
            reduce=lambda batch: batch.logits.log_softmax(dim=-1),
            keep=self.keep,
            batch_size=batch_size,
        )
        self._logprobs = logprobs[0].to(loaded.device)  # [prompts, keep, vocab]
        every = torch.arange(len(cut), device=loaded.device)
        self.base = self.compare(GridBatch(self._logprobs, torch.zeros_like(every), every)).cpu()

    def compare(self, batch: GridBatch) -> Float[Tensor, "rows 3"]:
        """Per row: KL(base ‖ batch) at the last prompt position, its mean along the answer, mean NLL of the answer."""
        each = batch.logits.shape[1] * batch.logits.shape[2]
        on_cpu = batch.logits.device.type == "cpu"
        size = max(1, (_CPU_CHUNK_ELEMENTS if on_cpu else _CHUNK_ELEMENTS) // each)
        parts = zip(batch.logits.split(size), batch.prompt.split(size), strict=True)
        return torch.cat([self._compare(logits, prompt) for logits, prompt in parts])

    def _compare(self, logits: Tensor, prompt: Tensor) -> Tensor:
        reference, changed = self._logprobs[prompt], logits.log_softmax(dim=-1)
        kl = (reference.exp() * (reference - changed)).sum(dim=-1)  # [rows, keep]
        nll = -changed.gather(-1, self._ids[prompt].unsqueeze(-1)).squeeze(-1)
        counts = self.counts[prompt].unsqueeze(1)
        first = self.keep - counts
        answered = torch.arange(self.keep, device=kl.device) >= first
        means = [torch.where(answered, values, 0.0).sum(dim=1) / counts[:, 0] for values in (kl, nll)]
        return torch.stack([kl.gather(1, first)[:, 0], *means], dim=1)
