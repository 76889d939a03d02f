"""Several devices on one CPU: tensors that say where they lie, and an error where one operation reads two places.

What a GPU would refuse is refused here. Values are plain CPU tensors, so that results can be compared bit for bit.
"""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

HOST = torch.device("cpu")
FIRST, SECOND = "cpu:1", "cpu:2"
_INDEXING = {"__getitem__", "__setitem__", "index_put", "index_put_"}  # these take indices from the host
_DEVICE = inspect.getattr_static(Tensor, "device").__get__  # what asking a tensor for its device calls


class OverTwoDevices(AssertionError):
    """An operation that a GPU would refuse."""


def home(tensor: Tensor) -> torch.device:
    """Where a tensor lies."""
    found: torch.device = getattr(tensor, "_home", HOST)
    return found


def put(value: Any, device: torch.device | str) -> Any:
    """A result, all of whose tensors lie on a device from now on."""
    for each in tree_leaves(value):
        if isinstance(each, Tensor):
            vars(each)["_home"] = torch.device(device)  # the mark that makes it virtual
    return value


def keep_on_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parameter lies where the tensor does that it is made of; a function mode does not see it made."""
    made = nn.Parameter.__new__

    def new(cls: Any, data: Any = None, requires_grad: bool = True) -> Any:
        return put(made(cls, data, requires_grad), home(data))

    monkeypatch.setattr(nn.Parameter, "__new__", staticmethod(new))


class VirtualDevices(TorchFunctionMode):
    """Context in which `device=` and `.to` are obeyed in name, and results lie where their operands do."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if func == _DEVICE:
            return home(args[0])
        if name in ("to", "cpu") and args and isinstance(args[0], Tensor):
            return _moved(func, args, kwargs)
        operands = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        asked = kwargs.pop("device", None)
        if name == "grad" and func is torch.autograd.grad:
            inputs = kwargs.get("inputs", args[1] if len(args) > 1 else ())
            inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
            found = func(*args, **kwargs)
            return tuple(put(one, home(of)) for one, of in zip(found, inputs, strict=True))
        if asked is not None:
            return put(func(*args, **kwargs), asked)
        own = home(operands[0]) if operands else HOST
        if name in ("copy_", "__deepcopy__"):
            return put(func(*args, **kwargs), own)
        homes = {home(one) for one in operands if home(one) != HOST}
        if len(homes) > 1 or (homes and _from_host(name, operands)):
            places = [f"{tuple(one.shape)} on {home(one)}" for one in operands]
            raise OverTwoDevices(f"{name}: {', '.join(places)}")
        return put(func(*args, **kwargs), next(iter(homes), HOST))


def _from_host(name: str, operands: list[Tensor]) -> bool:
    """Whether operands of an operation on a device lie on the host; single numbers and indices may."""
    if name in _INDEXING and home(operands[0]) != HOST:
        return False
    return any(home(one) == HOST and one.dim() > 0 for one in operands)


def _moved(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Tensor:
    """`tensor.to(…)` and `tensor.cpu()`: a copy where it changes places."""
    tensor, rest = args[0], list(args[1:])
    device = HOST if func.__name__ == "cpu" else kwargs.pop("device", None)
    if rest and isinstance(rest[0], Tensor):
        device, rest[0] = home(rest[0]), rest[0].dtype
    elif rest and isinstance(rest[0], str | torch.device):
        device = rest.pop(0)
    target = home(tensor) if device is None else torch.device(device)
    kwargs.pop("non_blocking", None)
    dtype = [one for one in (*rest, kwargs.get("dtype")) if isinstance(one, torch.dtype)]
    found: Tensor = tensor.to(dtype[0], copy=kwargs.get("copy", False)) if dtype else tensor
    if found is tensor and (target != home(tensor) or kwargs.get("copy")):
        found = tensor.clone()
    return found if found is tensor else put(found, target)
