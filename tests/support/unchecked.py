"""Copies of modules without annotation checks, to test the checks of the package itself."""

import importlib.util
import sys
from types import ModuleType

import pytest


def unchecked_copy(module: ModuleType, *imported: tuple[ModuleType, ModuleType]) -> ModuleType:
    """Returns a copy of `module` whose annotations are not checked.

    Each pair `(original, replacement)` of `imported` replaces a module that `module` imports.
    """
    name = f"unchecked_{module.__name__.rpartition('.')[2]}"
    spec = importlib.util.spec_from_file_location(name, module.__file__)
    copy = importlib.util.module_from_spec(spec)
    sys.modules[name] = copy  # where dataclasses look up annotations
    with pytest.MonkeyPatch.context() as patch:
        for original, replacement in imported:
            patch.setitem(sys.modules, original.__name__, replacement)
        spec.loader.exec_module(copy)
    return copy
