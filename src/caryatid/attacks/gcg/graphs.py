"""Fewer launches and fewer passes over memory on CUDA, for forwards that are run again and again.

A search repeats the same small passes, and on a GPU a small pass takes as long as its launches: `Replay` records one as
a CUDA graph. Large passes lose time to norms, gates and rotary embeddings, which read and write whole activations
several times over: `fused` compiles these parts, and nothing else, for as long as it is entered.
"""

import gc
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

Output = TypeVar("Output")
Backend = str | Callable[..., Any]  # of torch.compile
log = logging.getLogger(__name__)
FUSED_FROM = 1_000_000_000  # parameters: below, a step takes as long as its launches, compiled or not
RECORDED_FROM = 4  # repetitions: recording costs about as much as one


class Replay(Generic[Output]):
    """A function of one tensor; on CUDA replayed as a captured graph, in one launch, from its second call on.

    Whatever else the function reads is the same in every call, and it never waits for the device. What it returned is
    overwritten by the next call. Where recording fails, or for another shape than the first, it is called as it is.

    Args:
        repetitions: calls to expect; too few are not worth a recording.
    """

    def __init__(self, device: torch.device, repetitions: int) -> None:
        self._open = device.type == "cuda" and repetitions >= RECORDED_FROM
        self._graph: torch.cuda.CUDAGraph | None = None
        self._input: Tensor | None = None
        self._output: Output | None = None
        self._function: Callable[[Tensor], Output] | None = None  # its tensors are the graph's, so they stay

    @property
    def recorded(self) -> bool:
        return self._graph is not None

    def __call__(self, function: Callable[[Tensor], Output], value: Tensor) -> Output:
        if self._open and self._input is None:
            self._input = value.detach().clone()  # this first call also warms up
        elif self._open and self._input is not None and self._input.shape == value.shape:
            with torch.no_grad():
                self._input.copy_(value)
            if self._graph is None:
                self._graph = self._record(function)
            if self._graph is not None:
                self._graph.replay()
                return cast(Output, self._output)
        return function(value)

    def _record(self, function: Callable[[Tensor], Output]) -> torch.cuda.CUDAGraph | None:
        value = cast(Tensor, self._input)
        found = captured(partial(function, value), value.device)
        if found is None:
            self._open = False
            return None
        self._function = function
        graph, self._output = found
        return graph


@cache
def _capture_stream(device: int) -> torch.cuda.Stream:
    """One for all recordings on a card: each stream has a workspace of its own for matrix products."""
    return torch.cuda.Stream(device)


def captured(
    function: Callable[[], Output], device: torch.device, pool: Any = None
) -> tuple[torch.cuda.CUDAGraph, Output] | None:
    """A function's launches as a CUDA graph, and what it returned, which each replay overwrites; None where that fails.

    Args:
        pool: memory that graphs share whose outputs are copied before another of them is replayed.
    """
    graph, enabled = torch.cuda.CUDAGraph(), gc.isenabled()
    index = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.synchronize(device)
    gc.disable()  # freeing what lies on the device may not be recorded
    try:
        with torch.cuda.stream(_capture_stream(index)):
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                output = function()
            finally:
                graph.capture_end()
    except RuntimeError as error:
        log.warning("no CUDA graph for a repeated pass, which runs without: %s", error)
        torch.cuda.synchronize(device)
        # A failed recording leaves the generator in its recording state; a copy of it is not.
        random = torch.cuda.default_generators[index]
        random.graphsafe_set_state(random.clone_state())
        return None
    finally:
        if enabled:
            gc.enable()
    return graph, output


class _Compiled:
    """A compiled function that falls back to the plain one, for good, when the compiler fails."""

    def __init__(self, function: Callable[..., Any], backend: Backend) -> None:
        self.plain = function
        # Casts as written: what eager execution rounds between two operations is rounded here too.
        options: dict[str, str | int | bool | Callable[..., Any]] | None = (
            {"emulate_precision_casts": True} if backend == "inductor" else None
        )
        self.compiled: Callable[..., Any] | None = torch.compile(
            function, dynamic=True, backend=backend, options=options
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.compiled is not None:
            try:
                return self.compiled(*args, **kwargs)
            except TorchDynamoException as error:
                log.warning("%s runs uncompiled: %s", self.plain.__qualname__, str(error).splitlines()[0])
                self.compiled = None
        return self.plain(*args, **kwargs)


@cache
def compiled(function: Callable[..., Output], backend: Backend = "inductor") -> Callable[..., Output]:
    """`function`, compiled at its first call for any shape; the plain function where the compiler fails."""
    return _Compiled(function, backend)


def worth_fusing(model: nn.Module) -> bool:
    """Whether `fused` is the default: a model on CUDA that is large enough."""
    first = next(model.parameters())
    return first.device.type == "cuda" and sum(p.numel() for p in model.parameters()) >= FUSED_FROM


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    """Norms and gated feed-forward modules of transformers itself, those with an adapter or a hook left out.

    Their linear layers may stand in float8 (`precision.py`): the quantisation is then compiled with what is around it.
    """
    for module in model.modules():
        kind = type(module)
        if not kind.__module__.startswith("transformers.models.") or "forward" in vars(module):
            continue
        if kind.__name__.endswith(("Norm", "MLP")) and all(map(_untouched, module.children())):
            yield module


def _untouched(module: nn.Module) -> bool:
    home = type(module).__module__
    float8 = type(module).__name__ == "Float8Linear" and module.adapted is None
    hooked = module._forward_hooks or module._forward_pre_hooks
    return (float8 or home.startswith(("torch.nn.", "transformers.activations"))) and not hooked


@contextmanager
def fused(model: nn.Module, *, backend: Backend = "inductor") -> Iterator[None]:
    """Context in which norms, feed-forward modules and rotary embeddings are compiled; undone afterwards."""
    with ExitStack() as stack:
        homes = {type(module).__module__ for module in model.modules()}
        for home in (sys.modules[name] for name in homes if name.startswith("transformers.models.")):
            plain = vars(home).get("apply_rotary_pos_emb")
            if plain is not None:
                vars(home)["apply_rotary_pos_emb"] = compiled(plain, backend)
                stack.callback(setattr, home, "apply_rotary_pos_emb", plain)
        for module in _parts(model):
            object.__setattr__(module, "forward", partial(compiled(type(module).forward, backend), module))
            stack.callback(object.__delattr__, module, "forward")
        yield
