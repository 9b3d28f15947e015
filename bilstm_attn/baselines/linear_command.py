"""The linear baseline command: fits candidates, chooses C on validation, reports test metrics."""

import time
from collections.abc import Mapping

import numpy as np

from bilstm_attn.baselines import linear
from bilstm_attn.baselines.linear_options import LinearOptions
from bilstm_attn.data.splits import draw_parts
from bilstm_attn.data.token_cache import prepare_tokens
from bilstm_attn.nn.metrics import measure_binary
from bilstm_attn.runtime.console import Console, percent


def run_linear_baseline(options: LinearOptions) -> int:
    """Fits the baseline and prints its metrics; returns the exit status.

    C is chosen by validation accuracy. Then the model is fitted on all training examples and
    measured once on the test split; a data set without one is reported on validation.

    Raises:
      UserError: a mistake in the options or the data, or a missing package.
    """
    options.check()
    linear.logistic_regression()  # if scikit-learn is missing, fail before any work
    console = Console()
    tokens = prepare_tokens(options.data, options.locations, console)
    started = time.perf_counter()
    lexicon_size, labels = len(tokens.lexicon()), tokens.split("train").labels
    training, validation = draw_parts(np.arange(len(labels)), options.data, options.seed)
    ngrams = linear.find_ngrams(tokens.split("train"), lexicon_size)
    candidates = linear.fit_candidates(ngrams, labels, training, validation, options.seed)
    for candidate in candidates:
        accuracy = percent(candidate.metrics["accuracy"])
        console.print(f"C {candidate.strength:<5} validation accuracy {accuracy}")
    strength, model, metrics = linear.best_candidate(candidates)
    if "test" in tokens.splits:
        [model] = linear.fit(ngrams, labels, [strength], options.seed)
        test = tokens.split("test")
        metrics = measure_binary(model.logits(linear.find_ngrams(test, lexicon_size)), test.labels)
        console.print(
            f"test split, measured once, after fitting all {len(labels):,} training examples:"
        )
    else:
        console.print(f"{options.dataset} has no test split; validation, on which C was chosen:")
    seconds = time.perf_counter() - started
    print_metrics(metrics, strength, len(model.features), seconds, console)
    return 0


def print_metrics(
    metrics: Mapping[str, float], strength: float, features: int, seconds: float, console: Console
) -> None:
    """Prints every metric, the chosen C, the number of features and the time, one per line."""
    for name, value in metrics.items():
        console.print(f"{name.replace('_', ' '):18} {value:.6f}")
    console.print(f"{'C':18} {strength}\n{'features':18} {features:,}")
    console.print(f"{'seconds':18} {seconds:.1f}")
