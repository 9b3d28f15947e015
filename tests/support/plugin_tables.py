"""A context manager that removes the plug-ins loaded within it from all tables."""

import contextlib
import importlib
from collections.abc import Callable, Iterator

from bilstm_attn.runtime import plugins


@contextlib.contextmanager
def plugin_scope() -> Iterator[Callable[[], None]]:
    """Yields a function that unloads every plug-in; it is also called on exit."""
    tables = [
        getattr(importlib.import_module(family.module), table)
        for table, family in plugins.FAMILIES.items()
    ]
    before = [dict(table) for table in tables]

    def unload() -> None:
        plugins._loaded.clear()
        for table, entries in zip(tables, before, strict=True):
            table.clear()
            table.update(entries)

    try:
        yield unload
    finally:
        unload()
