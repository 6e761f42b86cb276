"""The configuration: pydantic models, and the only place that knows a default value."""

from conceptome.config.base import Strict, validate
from conceptome.config.run import FIGURES, Config, Run, Study, load, parse, resolve

__all__ = ["FIGURES", "Config", "Run", "Strict", "Study", "load", "parse", "resolve", "validate"]
