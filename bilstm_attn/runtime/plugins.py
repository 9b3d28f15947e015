"""Plug-ins: variants from outside the package, loaded only when named.

A plug-in is a Python file, a module, or an entry point of the group `bilstm_attn.plugins`. It
defines tables with the names of ours, such as `CELLS = {"peephole": Peephole}`; their entries are
added to ours. The path and SHA-256 of every plug-in go into a run's record and its export.
"""

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from bilstm_attn.errors import UserError
from bilstm_attn.runtime.files import file_sha256

GROUP = "bilstm_attn.plugins"


class Family(NamedTuple):
    """One table of variants: its module, and the class that its entries derive from."""

    module: str
    base: str


FAMILIES = {
    "TASKS": Family("bilstm_attn.nn.tasks", "Task"),
    "CELLS": Family("bilstm_attn.nn.cells", "Cell"),
    "ENCODERS": Family("bilstm_attn.nn.encoder", "Encoder"),
    "ATTENTIONS": Family("bilstm_attn.nn.attention", "Attention"),
    "POOLINGS": Family("bilstm_attn.nn.pooling", "Pooling"),
    "OBJECTIVES": Family("bilstm_attn.training.objectives", "Objective"),
    "DATASETS": Family("bilstm_attn.data.sources", "Source"),
    "TOKENISERS": Family("bilstm_attn.data.tokenisers", "Tokeniser"),
    "ATTRIBUTIONS": Family("bilstm_attn.explain.attribution", "Attribution"),
}

_loaded: dict[str, str] = {}  # the SHA-256 of every plug-in, by its file


def load_plugins(names: Iterable[str]) -> None:
    """Loads plug-ins by file, module or entry point; one that is loaded already is skipped.

    Raises:
      UserError: there is no such plug-in, it raises, defines no table, or an entry has a name that
        is taken or a class that does not fit.
    """
    for name in names:
        path = _find(name)
        if str(path) in _loaded:
            if file_sha256(path) != _loaded[str(path)]:
                raise UserError(f"plug-in {path} has changed since it was loaded; start again")
            continue
        digest = file_sha256(path)
        _register(name, _import(name, path))
        _loaded[str(path)] = digest


def loaded() -> list[dict[str, str]]:
    """Returns path and SHA-256 of every loaded plug-in, as plain JSON."""
    return [{"path": path, "sha256": digest} for path, digest in _loaded.items()]


def require_plugins(
    recorded: Sequence[Mapping[str, str]], owner: str, notify: Callable[[str], None]
) -> None:
    """Checks that the plug-ins that `owner` was made with are loaded.

    A plug-in of the same file name and another digest is reported to `notify`.

    Raises:
      UserError: a plug-in is missing; names its file and digest.
    """
    here = {Path(path).name: digest for path, digest in _loaded.items()}
    for plugin in recorded:
        name, digest = Path(plugin["path"]).name, plugin["sha256"]
        if digest in here.values():
            continue
        if name not in here:
            raise UserError(
                f"{owner} needs the plug-in {name} (SHA-256 {digest[:12]}, then at "
                f"{plugin['path']}); give --plugin with its path"
            )
        notify(
            f"plug-in {name} has changed: {owner} was made with SHA-256 {digest[:12]}, the file "
            f"here has {here[name][:12]}"
        )


def _find(name: str) -> Path:
    """Returns the file of a plug-in."""
    if name.endswith(".py"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"plug-in {name} is not a file; give the path of a Python file")
        return path.resolve()
    points = importlib.metadata.entry_points(group=GROUP)
    module = next((point.module for point in points if point.name == name), name)
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        known = ", ".join(sorted(point.name for point in points)) or "none is installed"
        raise UserError(
            f"no plug-in {name!r}: give the path of a Python file, a module that can be imported, "
            f"or an entry point of {GROUP} ({known})"
        )
    return Path(spec.origin).resolve()


def _import(name: str, path: Path) -> ModuleType:
    """Runs a plug-in's file and returns its module."""
    module_name = f"bilstm_attn_plugin_{path.stem}" if name.endswith(".py") else name
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        line = next(iter(str(error).splitlines()), "")
        raise UserError(f"plug-in {path} raised {type(error).__name__}: {line}; fix it") from None
    return module


def _register(name: str, module: ModuleType) -> None:
    """Adds the entries of a plug-in's tables to the package's tables, all or none."""
    new: list[tuple[dict[str, Any], str, Any]] = []
    for table, family in FAMILIES.items():
        package_module = importlib.import_module(family.module)
        base = getattr(package_module, family.base)
        entries = getattr(package_module, table)
        plugin_entries = getattr(module, table, {})
        if plugin_entries is entries:  # imported, not defined
            continue
        if not isinstance(plugin_entries, dict):
            raise UserError(f"plug-in {name}: {table} must be a dict of names and classes")
        for key, entry in plugin_entries.items():
            if entries.get(key) is entry:
                continue
            if key in entries:
                raise UserError(
                    f"plug-in {name} defines {key!r} in {table}, which exists already; choose "
                    "another name"
                )
            if not (isinstance(entry, type) and issubclass(entry, base)):
                raise UserError(
                    f"plug-in {name}: {table}[{key!r}] must be a subclass of "
                    f"{family.module}.{family.base}, got {entry!r}"
                )
            new.append((entries, key, entry))
    if not new:
        raise UserError(f"plug-in {name} must define an entry in one of {', '.join(FAMILIES)}")
    for entries, key, entry in new:
        entries[key] = entry
