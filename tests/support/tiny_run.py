"""A data set of made-up reviews, a recipe small enough to train in a second, and the scripts."""

import contextlib
import functools
import importlib.util
import random
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from bilstm_attn.config import DataConfig
from bilstm_attn.data import sources
from bilstm_attn.data.sources import Source
from bilstm_attn.data.token_cache import DataLocations, cache_folder, prepare_tokens
from bilstm_attn.errors import UserError
from bilstm_attn.runtime.console import Console
from bilstm_attn.training.run_dir import RunDir

ROOT = Path(__file__).parents[2]
GOOD, BAD, NEUTRAL = ("brillo", "wunda", "gladd"), ("dregg", "tedia"), ("filmo", "actar", "plott")
SIZES = {"train": 60, "test": 20, "unlabelled": 8}


def reviews(split: str) -> Iterator[tuple[str, int]]:
    numbers = random.Random(split)
    for row in range(SIZES[split]):
        positive = row % 2
        words = numbers.choices((GOOD if positive else BAD) + NEUTRAL, k=numbers.randint(3, 20))
        yield " ".join(words), -1 if split == "unlabelled" else positive


def tiny(of: type[Source]) -> type[Source]:
    """Returns a source like `of`, with made-up reviews."""

    class Tiny(Source):
        name, version, splits = of.name, of.version, of.splits

        def __init__(self, data_dir=None, archive=None):
            pass

        def size(self, split):
            return SIZES[split]

        def read(self, split):
            return reviews(split)

    return Tiny


@contextlib.contextmanager
def made_up_reviews(dataset: str = "movie_reviews") -> Iterator[None]:
    """Replaces the texts of `dataset` by the made-up reviews."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sources.DATASETS, dataset, tiny(sources.DATASETS[dataset]))
        yield


def write_cache(folder: Path, dataset: str = "movie_reviews", **fields: object) -> Path:
    """Prepares the made-up reviews below `folder` under the name of `dataset`."""
    config = DataConfig(dataset=dataset, **fields)
    with made_up_reviews(dataset):
        prepare_tokens(config, DataLocations(cache=folder), Console())
    return cache_folder(config, folder)


def load_script(name: str) -> Callable[[list[str]], int]:
    """Returns `main` of scripts/`name`.py, to be called with strings or paths."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where tyro looks for the fields' docstrings
    spec.loader.exec_module(module)
    return lambda *arguments: module.main([str(argument) for argument in arguments])


FIELDS = {
    "data.dataset": "movie_reviews",
    "data.validation-examples": 12,
    "data.max-tokens": 12,
    "data.batch-size": 8,
    "data.bucket-edges": 7,
    "model.embedding-size": 4,
    "model.hidden-size": 3,
    "model.layers": 1,
    "model.attention-size": 5,
    "model.dense-size": 2,
    "train.epochs": 2,
    "train.select": "last",
}


def train(folder: Path, *more: object, recipe: object = "quickstart", **fields: object) -> int:
    """Trains the tiny recipe below `folder` / "runs"; `data__batch_size=4` changes a field.

    The run has the name of the recipe unless `more` has `--name`.
    """
    if "--name" not in more:
        more = ("--name", Path(str(recipe)).stem, *more)
    changed = {name.replace("__", ".").replace("_", "-"): fields[name] for name in fields}
    flags = [(f"--{name}", value) for name, value in (FIELDS | changed).items()]
    arguments = [word for flag in flags for word in flag]
    places = ["--runs", folder / "runs", "--cache", folder / "cache", "--log-every-steps", 2]
    return load_script("train")(recipe, *places, *arguments, *more)


@contextlib.contextmanager
def full_disk(limit: int = 0) -> Iterator[None]:
    """Makes the system refuse to write beyond the first `limit` bytes of any file (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def error_of(call: Callable, *arguments: object, **given: object) -> str:
    """Returns the one line of the `UserError` that the call must raise."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **given)
    message = str(caught.value)
    assert "\n" not in message
    return message


def error_reading(source: Source, split: str = "train") -> str:
    """Returns the one line of the `UserError` that reading `source` must raise."""
    return error_of(lambda: list(source.read(split)))


def flip_bit(path: Path, at: int) -> None:
    """Flips a bit of the byte at `at`."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def truncate(path: Path, size: int) -> None:
    """Leaves the first `size` bytes."""
    path.write_bytes(path.read_bytes()[:size])


def tiny_run(folder: Path, name: str = "tiny") -> RunDir:
    """Returns the run that `train` made below `folder`."""
    return RunDir(folder / "runs" / name / "seed0")


@functools.cache
def _compile_once(folder: Path) -> None:
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    compilation_cache.reset_cache()


@functools.cache
def _trained(folder: Path) -> Path:
    _compile_once(folder)
    jax.devices()  # as many as conftest.py asks for, before any script can ask for its own
    write_cache(folder / "trained" / "cache")
    write_cache(folder / "trained" / "cache", "imdb")
    assert train(folder / "trained", "--name", "tiny") == 0
    return folder / "trained"


def compile_once(factory: pytest.TempPathFactory) -> None:
    """Keeps what is compiled for the session: many tests run the same small models."""
    _compile_once(factory.getbasetemp())


def train_once(factory: pytest.TempPathFactory) -> Path:
    """Returns a folder that is made once a session: "cache", and "runs"/tiny/seed0, finished.

    Copy what you change.
    """
    return _trained(factory.getbasetemp())
