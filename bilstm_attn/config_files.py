"""Configs in files: recipes (`.py`) and saved configs (`.json`), also of earlier versions."""

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_origin, get_type_hints

from bilstm_attn.config import Config, require
from bilstm_attn.errors import UserError
from bilstm_attn.registry import unknown


def _unchanged(value: Any) -> Any:
    return value


def _vectors_source(path: Any) -> Any:
    return f"vectors:{path}" if path else path


# Fields of earlier versions, in saved configs and exports: the current path, and a conversion.
RENAMED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "data.validation_reviews": ("data.validation_examples", _unchanged),
    "data.train_reviews": ("data.train_examples", _unchanged),
    "model.products": ("model.matmul_precision", _unchanged),
    "model.recompute_gates": ("model.remat", _unchanged),
    "model.vectors": ("train.init_from", _vectors_source),
    "train.each_epoch": ("train.eval_split", _unchanged),
}


def from_json(text: str, origin: str) -> Config:
    """Returns the config that `Config.to_json` wrote, in this version or in an earlier one.

    `origin` names the text in errors.

    Raises:
      UserError: `text` is not a JSON object, or a field is unknown or has an invalid value.
    """
    try:
        return _from_mapping(Config, _rename_old_fields(json.loads(text)), "")
    except UserError as error:
        raise UserError(f"{origin} does not fit this version of bilstm_attn: {error}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{origin} is not a saved config ({error}); give the config.json of a run"
        ) from None


def _rename_old_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of a saved config under the current field names."""
    values = {name: dict(v) if isinstance(v, dict) else v for name, v in values.items()}
    for old, (new, convert) in RENAMED.items():
        (old_owner, old_name), (new_owner, new_name) = old.split("."), new.split(".")
        source = values.get(old_owner)
        if not isinstance(source, dict) or old_name not in source:
            continue
        target = values.setdefault(new_owner, {})
        require(
            new_name not in target,
            f"{old} is now named {new}, and both are given; remove {old}",
        )
        target[new_name] = convert(source.pop(old_name))
    return values


def _from_mapping(kind: type, values: Mapping[str, Any], path: str) -> Any:
    """Constructs the dataclass `kind` from nested JSON values; `path` prefixes names in errors."""
    hints = get_type_hints(kind)
    fields = {}
    for name, value in values.items():
        if name not in hints:
            raise unknown("field", f"{path}{name}", [f"{path}{known}" for known in hints])
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            value = _from_mapping(hint, value, f"{path}{name}.")
        elif get_origin(hint) is tuple:
            value = tuple(value)
        fields[name] = value
    return kind(**fields)


def recipe_names(folder: Path) -> list[str]:
    """Returns the names of the recipes in `folder`, sorted."""
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def load_recipe(name: str, folder: Path) -> Config:
    """Loads the recipe `name` from `folder`, or the file at the path `name` (`.py` or `.json`).

    A Python file defines `config`; the config is then named after the file. A `.json` file is a
    saved config and keeps its own name.

    Raises:
      UserError: no such recipe exists, or the file holds no valid config.
    """
    path = Path(name) if name.endswith((".py", ".json")) else folder / f"{name}.py"
    try:
        exists = path.is_file()
    except OSError:  # for example, a name longer than the file system allows
        exists = False
    if not exists:
        raise unknown("recipe", name, recipe_names(folder))
    if path.suffix == ".json":
        return from_json(path.read_text(encoding="utf-8", errors="replace"), str(path))
    config = getattr(_execute(path), "config", None)
    if not isinstance(config, Config):
        raise UserError(f"recipe {path} must define `config`, a bilstm_attn.config.Config")
    return dataclasses.replace(config, name=path.stem)


def _execute(path: Path) -> ModuleType:
    """Runs a Python recipe and returns it as a module."""
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"recipe {path}: {error}") from None
    except (Exception, SystemExit) as error:
        raise UserError(f"recipe {path} cannot be read: {error!r}; fix the file") from None
    return module
