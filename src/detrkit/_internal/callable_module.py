"""Packages that are also functions: `detrkit.export(...)` next to `detrkit.export.onnx`."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def make_callable(package: str, function: str) -> None:
    """Make a package callable: calling it calls a function of one of its modules, which is imported then.

    Importing a submodule binds the package as an attribute of `detrkit`, so a function of the same name in
    `detrkit/__init__.py` would be replaced by it. Call this at the end of the package's ``__init__``.

    Args:
        package: ``__name__`` of the package.
        function: ``module:name``, relative to the package.
    """
    module_name, _, name = function.partition(":")

    class CallablePackage(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return getattr(import_module(f"{package}.{module_name}"), name)(*args, **kwargs)

    sys.modules[package].__class__ = CallablePackage
