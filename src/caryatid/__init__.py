"""Where inside a language model refusal is carried, and how safety training moves it."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Carrier as Carrier
    from .api import ChatOptions as ChatOptions
    from .api import Model as Model
    from .api import Run as Run
    from .api import Site as Site
    from .api import load as load
    from .api import open_run as open_run

__version__ = "0.1.0"
__all__ = ["Carrier", "ChatOptions", "Model", "Run", "Site", "__version__", "load", "open_run"]


def __getattr__(name: str) -> Any:
    """The API, imported when it is first used: importing the package costs neither torch nor transformers."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.api"), name)


def __dir__() -> list[str]:
    return list(__all__)
