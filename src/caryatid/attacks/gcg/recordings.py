"""CUDA graphs of the passes of a search on a small model, which outlive the search.

A small pass takes as long as its launches. A pass (`passes.py`) is recorded when its shape comes for the second time,
and is one launch from then on. Recordings belong to the model: R2D2 searches two steps between two updates of the
weights, which are changed in place, so that the same recordings serve all searches. They are dropped when weights are
replaced, when modules or the manner of computing have changed, when memory runs out, and with the model. Not seen is
what changes a module's other attributes (an attention's scale, a norm's epsilon), which nothing here does.

What cannot be recorded, or has not been yet, runs as it does without: the functions here then return None.
"""

import logging
import weakref
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from transformers import DynamicCache

from ...models.batch import RELEASES
from ...models.cache import PrefixCache, SuffixKeys, run_prefixes
from ...models.layout import num_layers
from ...models.load import LoadedModel
from ...models.lockstep import is_lockstep
from .graphs import captured, worth_fusing
from .passes import PassInputs, PassKind, PassOutput, PassShape, needed_shape, prefix_rows, unstacked
from .tails import Packed

log = logging.getLogger(__name__)
MODE: Literal["auto", "off", "unlaunched"] = "auto"
"""`off`: nothing is recorded. `unlaunched`: anywhere, in the same fixed places, but launched one by one (for tests)."""
KEPT = 16  # recordings per model; the least recently used goes
SIGHTINGS = 2  # of a shape before it is recorded, the last of them included
SLACK = 1.15  # a recording serves passes that cost at least its own cost over this
_SHAPES = 512  # counted at most
_HOMES = (
    "torch.nn.modules.",
    "transformers.models.",
    "transformers.activations",
    "transformers.pytorch_utils",
)
_INACTIVE = (
    "transformers.utils.output_capturing"  # its hooks do nothing unless a caller asks for hidden states
)


@dataclass
class _Recording:
    inputs: PassInputs
    graph: torch.cuda.CUDAGraph | None
    output: PassOutput | None


@dataclass
class _Store:
    """The recordings of one model, which must not be referred to from here: it would never be freed."""

    device: torch.device
    signature: tuple[Any, ...]
    modules: list[weakref.ref[Any]]
    kept: OrderedDict[tuple[PassKind, PassShape], _Recording] = field(default_factory=OrderedDict)
    seen: Counter[tuple[PassKind, PassShape]] = field(default_factory=Counter)
    pool: Any = None
    open: bool = True
    replays: int = 0

    def drop(self) -> bool:
        """All recordings; whether there were any."""
        if not self.kept:
            return False
        if any(one.graph is not None for one in self.kept.values()):
            torch.cuda.synchronize(self.device)
        self.kept.clear()
        self.pool = None  # a pool that no graph holds is not taken up again
        return True

    def fitting(self, kind: PassKind, shape: PassShape) -> _Recording | None:
        """The cheapest that holds a pass of this shape with little filling."""
        most = max(SLACK * shape.cost, shape.filled().cost)
        found = [key for key in self.kept if key[0] == kind and key[1].holds(shape) and key[1].cost <= most]
        if not found:
            return None
        best = min(found, key=lambda key: key[1].cost)
        self.kept.move_to_end(best)
        return self.kept[best]


_STORES: WeakKeyDictionary[nn.Module, _Store] = WeakKeyDictionary()


def release_recordings() -> bool:
    """Memory has run out: drop all recordings, and make none of these models any more; whether there were any."""
    dropped = False
    for store in list(_STORES.values()):
        if store.drop():
            dropped, store.open = True, False
    if dropped:
        log.warning("memory ran out: recorded passes are dropped, and run without from now on")
    return dropped


RELEASES.append(release_recordings)


def recordings(model: nn.Module) -> dict[str, int]:
    """How many are kept, and how often passes were replayed from them."""
    store = _STORES.get(model)
    return {"kept": len(store.kept), "replays": store.replays} if store else {"kept": 0, "replays": 0}


def closed(loaded: LoadedModel) -> bool:
    """Whether recording has been given up for this model."""
    store = _STORES.get(loaded.model)
    return store is not None and not store.open


def may_record(loaded: LoadedModel) -> bool:
    """Whether passes of this model are recorded: where launches bound, on one device, in one process."""
    if MODE == "off" or is_lockstep() or loaded.split:
        return False
    blocks = DynamicCache(config=loaded.model.config.get_text_config()).layers
    if len(blocks) != num_layers(loaded.model):  # some read the keys of others
        return False
    return MODE == "unlaunched" or (loaded.device.type == "cuda" and not worth_fusing(loaded.model))


def _frozen(modules: Sequence[Any]) -> tuple[Any, ...] | None:
    """What a recording takes for granted of a model's modules; None where they do what it would not repeat.

    These are hooks, dropout, forwards other than PyTorch's and the library's own, and tensors of other kinds.
    """
    if _has_any_global_hook():
        return None
    found: list[Any] = []
    for module in modules:
        own = vars(module)
        if own["training"] or "forward" in own or not type(module).__module__.startswith(_HOMES):
            return None
        if own["_backward_hooks"] or own["_backward_pre_hooks"] or own["_forward_pre_hooks"]:
            return None
        if any(getattr(hook, "__module__", "") != _INACTIVE for hook in own["_forward_hooks"].values()):
            return None
        found += map(id, own["_modules"].values())
        for one in (*own["_parameters"].values(), *own["_buffers"].values()):
            if one is None:
                continue
            if type(one) not in (Tensor, nn.Parameter, nn.Buffer):
                return None  # its memory may be elsewhere
            found.append((one.data_ptr(), one.dtype, one.shape, one.stride()))
    return tuple(found)


def _manner() -> tuple[Any, ...] | None:
    """What a recording takes for granted of PyTorch's state; None where nothing is recorded."""
    if torch.is_inference_mode_enabled() or any(map(torch.is_autocast_enabled, ("cuda", "cpu"))):
        return None
    try:
        products = torch.get_float32_matmul_precision()
    except RuntimeError:  # set through the newer attribute
        products = str(torch.backends.cuda.matmul.fp32_precision)
    kernels = torch.backends.cuda
    return (
        products,
        torch.are_deterministic_algorithms_enabled(),
        kernels.flash_sdp_enabled(),
        kernels.mem_efficient_sdp_enabled(),
        kernels.cudnn_sdp_enabled(),
        kernels.math_sdp_enabled(),
        kernels.matmul.allow_bf16_reduced_precision_reduction,
        kernels.matmul.allow_fp16_reduced_precision_reduction,
    )


def _store(loaded: LoadedModel) -> _Store | None:
    """The model's recordings, of its present modules and manner of computing; None where there can be none."""
    model: Any = loaded.model
    store, manner = _STORES.get(model), _manner()
    if manner is None or (store is not None and not store.open):
        return None
    modules = list(model.modules()) if store is None else [one() for one in store.modules]
    gone = None in modules
    frozen = None if gone else _frozen(modules)
    if frozen is None and not gone:
        return None
    signature = frozen, manner, model.config._attn_implementation
    if store is None:
        refs = [weakref.ref(one) for one in modules]
        store = _STORES[model] = _Store(loaded.device, signature, refs)
    elif gone or signature != store.signature:
        store.drop()
        del _STORES[model]
        return _store(loaded)
    return store


def _recorded(
    loaded: LoadedModel,
    kind: PassKind,
    packed: Packed,
    cases: Sequence[int],
    prefix: PrefixCache | None,
    suffix: SuffixKeys | None,
    kept: int = 0,
) -> PassOutput | None:
    """A pass from its recording, which is made at a shape's second sighting; filling included, and its own copy."""
    store = _store(loaded)
    if store is None or (
        prefix is not None and len({one.shape for one in (*prefix.keys, *prefix.values)}) > 1
    ):
        return None
    shape = needed_shape(packed, prefix, suffix, kept)
    found = store.fitting(kind, shape)
    if found is None:
        key = kind, shape.filled()
        store.seen[key] += 1
        if store.seen[key] < SIGHTINGS:
            if len(store.seen) > _SHAPES:
                store.seen.clear()
            return None
        inputs = PassInputs(loaded, key[1], None if prefix is None else prefix.keys[0])
        inputs.fill(packed, cases, prefix, suffix)
        output = inputs.run(loaded, kind)  # this also loads what may not be loaded while recording
        _keep(store, loaded, kind, inputs)
        return output
    found.inputs.fill(packed, cases, prefix, suffix)
    store.replays += 1
    if found.graph is None or found.output is None:
        return found.inputs.run(loaded, kind)
    found.graph.replay()
    return found.output.cloned()


def _keep(store: _Store, loaded: LoadedModel, kind: PassKind, inputs: PassInputs) -> None:
    """Record a pass that has just run; where that fails, nothing is recorded of this model from then on."""
    while len(store.kept) >= KEPT:
        key, old = store.kept.popitem(last=False)
        del store.seen[key]
        if old.graph is not None:
            torch.cuda.synchronize(loaded.device)  # it may still be running
    if MODE == "unlaunched":
        store.kept[kind, inputs.shape] = _Recording(inputs, None, None)
        return
    torch.cuda.empty_cache()  # while it records, PyTorch cannot give back memory to make room
    if store.pool is None:
        store.pool = torch.cuda.graph_pool_handle()
    found = captured(lambda: inputs.run(loaded, kind), loaded.device, store.pool)
    if found is None:
        store.drop()
        store.open = False
    else:
        store.kept[kind, inputs.shape] = _Recording(inputs, *found)


def recorded_losses(
    loaded: LoadedModel,
    packed: Packed,
    cases: Sequence[int],
    prefix: PrefixCache,
    suffix: SuffixKeys | None,
) -> Float[Tensor, "tails"] | None:
    """Mean target loss of each tail; `cases` are those of the rows."""
    found = _recorded(loaded, "losses", packed, cases, prefix, suffix)
    return None if found is None or found.losses is None else found.losses[: len(packed.prefix)]


def recorded_gradient(
    loaded: LoadedModel, packed: Packed, cases: Sequence[int], prefix: PrefixCache, kept: int
) -> PassOutput | None:
    """Losses of tails that have a row each; gradients and keys at the first `kept` columns, with filling."""
    found = _recorded(loaded, "gradient", packed, cases, prefix, None, kept)
    return (
        None if found is None or found.losses is None else found._replace(losses=found.losses[: len(cases)])
    )


def prefixes(loaded: LoadedModel, ids: Sequence[Sequence[int]]) -> PrefixCache:
    """`run_prefixes`, from a recording where there is one."""
    packed = prefix_rows(ids)
    rows, columns = packed.ids.shape
    found = _recorded(loaded, "prefix", packed, range(rows), None, None, columns)
    if found is None or found.keys is None:
        return run_prefixes(loaded, ids)
    states = unstacked(found.keys, rows, columns)
    return PrefixCache(states.keys, states.values, tuple(map(len, ids)))
