"""Importing timm, with or without torchvision."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from conceptome.errors import ConfigError


class _Names(type):
    """A class whose attributes are their own names, as members of an enumeration are looked up."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Placeholder(ModuleType):
    """A module in which every name is an empty class."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Names(name, (), {})


class _Finder:
    """Finds torchvision and everything below it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "torchvision" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Placeholder(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


@contextmanager
def _without_torchvision() -> Iterator[None]:
    """Put an empty torchvision in place while timm is imported, where there is none.

    timm imports it for transforms of its training scripts and for one frozen norm, none of which models here use; its
    wheels are built for one variant of PyTorch, and beside another one they break other libraries.
    """
    if "torchvision" in sys.modules or find_spec("torchvision") is not None:
        yield
        return
    finder = _Finder()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]


def import_timm() -> ModuleType:
    """Import timm, with or without torchvision.

    Raises
    ------
    ConfigError
        timm is not installed.
    """
    try:
        with _without_torchvision():
            import timm
            import timm.models
    except ModuleNotFoundError as error:
        raise ConfigError(f"model 'timm' needs the package timm ({error.name} is missing): run `make setup`") from None
    return timm
