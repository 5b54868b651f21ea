"""Start sooner: Lightning needs two classes of torchmetrics, whose package imports all of its metrics beside them.

With them come scipy.signal, scipy.stats and transformers: a quarter of the time that a training takes to import.
"""

import logging
import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

PACKAGE = "torchmetrics"
HOMES = {"Metric": "metric", "MetricCollection": "collections"}
"""What is imported alone, and the submodule where it is."""


def spare_torchmetrics() -> None:
    """Have the package be imported as a whole only when something else of it is asked for. Nothing where it is already
    imported, or not installed."""
    if PACKAGE in sys.modules or (spec := find_spec(PACKAGE)) is None or spec.submodule_search_locations is None:
        return
    from importlib.metadata import PackageNotFoundError, version

    package = _Spare(PACKAGE, spec.loader)
    package.__spec__, package.__path__, package.__file__ = spec, list(spec.submodule_search_locations), spec.origin
    try:
        package.__dict__["__version__"] = version(PACKAGE)
    except PackageNotFoundError:  # Lightning asks for it
        return
    sys.modules[PACKAGE] = package


class _Spare(ModuleType):
    """The package, before its own ``__init__`` has run."""

    def __init__(self, name: str, loader: Any) -> None:
        super().__init__(name)
        self.__dict__["_loader"] = loader

    def __getattr__(self, name: str) -> Any:
        if name == "_logger":  # which its submodules ask for
            return logging.getLogger(PACKAGE)
        if name in HOMES:
            try:
                import_module(f"{PACKAGE}.utilities")  # it and the other import each other, and this order works
                return getattr(import_module(f"{PACKAGE}.{HOMES[name]}"), name)
            except (ImportError, AttributeError):  # another version, which is made otherwise
                for other in [module for module in sys.modules if module.startswith(f"{PACKAGE}.")]:
                    del sys.modules[other]
        if name.startswith("__"):
            raise AttributeError(f"module {PACKAGE!r} has no attribute {name!r}")
        self.__class__ = ModuleType  # type: ignore[assignment]  # a plain package from here on
        self.__dict__["_loader"].exec_module(self)
        return getattr(self, name)
