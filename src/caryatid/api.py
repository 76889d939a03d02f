"""The Python API: what notebooks and scripts import (`caryatid.load`, `caryatid.open_run`, …)."""

from .causal.locate import Carrier, Site
from .models.chat_options import ChatOptions
from .single.model import Model, load
from .study.run import Run, open_run

__all__ = ["Carrier", "ChatOptions", "Model", "Run", "Site", "load", "open_run"]
