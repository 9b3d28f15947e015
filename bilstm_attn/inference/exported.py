"""The exported model: parameters, config and vocabulary in one safetensors file."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bilstm_attn.config import Config
from bilstm_attn.config_files import from_json
from bilstm_attn.data.sources import DATASETS
from bilstm_attn.data.vocabulary import Vocabulary
from bilstm_attn.errors import UserError
from bilstm_attn.nn.tasks import Task, make_task
from bilstm_attn.registry import look_up
from bilstm_attn.runtime.files import (
    tree_sha256,
    write_atomically,
)
from bilstm_attn.runtime.plugins import loaded, require_plugins
from bilstm_attn.types import Params

FORMAT = "bilstm_attn 1"


class Exported(NamedTuple):
    """Everything that using a model takes."""

    params: Params
    config: Config
    vocabulary: Vocabulary
    task: Task = make_task("binary")


def task_of(config: Config) -> Task:
    """Returns the task `model.task` with the label names of the data set.

    Raises:
      UserError: there is no such task or data set, or the task cannot have these labels.
    """
    source = look_up("dataset", DATASETS, config.data.dataset)
    return make_task(config.model.task, source.label_names)


def export_model(path: Path, params: Params, config: Config, vocabulary: Vocabulary) -> None:
    """Writes parameters, config, vocabulary and task as one safetensors file.

    Raises:
      UserError: the file cannot be written; an earlier file is unchanged.
    """
    flat = flatten_params(params)
    about = {
        "format": FORMAT,
        "config": config.to_json(),
        "vocabulary": "\n".join(vocabulary.words),
    }
    task = task_of(config)
    about["task"] = json.dumps({"name": task.name, "label_names": task.label_names})
    if plugins := loaded():
        about["plugins"] = json.dumps(plugins)
    about["sha256"] = tree_sha256([flat, _texts(about)])
    write_atomically(path, _in_order(save(flat, metadata=about)))


def _in_order(data: bytes) -> bytes:
    """Returns a safetensors file with its metadata in order, which `save` leaves to chance."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def load_model(path: Path) -> Exported:
    """Returns what `export_model` wrote.

    A plug-in that has changed since is reported on standard error.

    Raises:
      UserError: not such a file, of another version, or damaged; or it needs a plug-in that is not
        loaded.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} is not a model this program exported ({error}); give a run's folder or its "
            "model.safetensors"
        ) from None
    if about.get("format") != FORMAT:
        raise UserError(
            f"{path} must have the format {FORMAT!r}, but has {about.get('format')!r}; use the "
            "version of bilstm_attn that wrote it, or train again"
        )
    if tree_sha256([flat, _texts(about)]) != about.get("sha256"):
        raise UserError(f"{path} is damaged: its digest differs; copy it again from its source")
    require_plugins(json.loads(about.get("plugins", "[]")), str(path), _warn)
    words = about["vocabulary"].split("\n") if about["vocabulary"] else []
    config, task = from_json(about["config"], str(path)), _task(about.get("task"), path)
    return Exported(unflatten_params(flat), config, Vocabulary(words), task)


def _task(text: str | None, path: Path) -> Task:
    """Returns the task of an export; exports of earlier versions are binary."""
    if text is None:
        return make_task("binary")
    saved = json.loads(text)
    try:
        return make_task(saved["name"], tuple(saved["label_names"]))
    except UserError as error:
        raise UserError(
            f"{path} cannot be used: {error}; load the plug-in or version that has this task"
        ) from None


def _warn(line: str) -> None:
    print(line, file=sys.stderr)


def _texts(about: dict[str, str]) -> dict[str, np.ndarray]:
    """Returns the metadata that the digest covers; `plugins` and `task` only if present."""
    texts = {name: about.get(name, "") for name in ("format", "config", "vocabulary")}
    texts |= {name: about[name] for name in ("plugins", "task") if name in about}
    return {name: np.frombuffer(text.encode(), np.uint8) for name, text in texts.items()}


def flatten_params(params: Params, *, copy: bool = True) -> dict[str, Any]:
    """Returns the arrays by their path: `encoder.layers.0.forward.bias`.

    With `copy` they are NumPy arrays on the host, else the arrays themselves.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    flat = {".".join(str(key.key) for key in path): leaf for path, leaf in leaves}
    return {name: np.asarray(leaf) for name, leaf in flat.items()} if copy else flat


def unflatten_params(flat: Mapping[str, Any]) -> Params:
    """Returns the parameters that `flatten_params` was given."""
    params: Params = {}
    for name, leaf in flat.items():
        *owners, last = (int(part) if part.isdecimal() else part for part in name.split("."))
        inner = params
        for owner in owners:
            inner = inner.setdefault(owner, {})
        inner[last] = leaf
    return params
