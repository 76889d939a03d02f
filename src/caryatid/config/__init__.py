"""Configuration of studies: the schema, presets, and errors with file, line and column."""

from .load import dump_config, load_config, parse_config, preset_names
from .schema import StudyConfig

__all__ = ["StudyConfig", "dump_config", "load_config", "parse_config", "preset_names"]
