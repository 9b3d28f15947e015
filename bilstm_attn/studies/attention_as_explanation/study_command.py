"""The study command: measures each run, trains its auxiliary models and writes the report.

Results are cached in the run folder, so an interrupted study resumes.
"""

from functools import partial
from typing import Any

import numpy as np
from jax.sharding import Mesh

from bilstm_attn.config import require
from bilstm_attn.data.splits import split_examples
from bilstm_attn.data.token_cache import prepare_tokens
from bilstm_attn.data.vocabulary import clip
from bilstm_attn.explain.attribution import ATTRIBUTIONS
from bilstm_attn.explain.explanation import SMALL_BATCH_SIZE
from bilstm_attn.inference.exported import Exported, load_model
from bilstm_attn.nn.pooling import POOLINGS
from bilstm_attn.runtime.console import Console
from bilstm_attn.runtime.devices import make_mesh
from bilstm_attn.runtime.files import text_sha256
from bilstm_attn.runtime.prng import numpy_generator
from bilstm_attn.studies.attention_as_explanation.auxiliary_models import (
    AuxiliaryModels,
    compare_other_seeds,
    furthest_adversary,
)
from bilstm_attn.studies.attention_as_explanation.measurements import (
    AttentionMeasures,
    AttributionMeasures,
    measure_attention,
    measure_attributions,
)
from bilstm_attn.studies.attention_as_explanation.reference_loops import time_reference_loops
from bilstm_attn.studies.attention_as_explanation.report import write_report
from bilstm_attn.studies.attention_as_explanation.result_cache import ResultCache
from bilstm_attn.studies.attention_as_explanation.study_options import StudyOptions
from bilstm_attn.studies.attention_as_explanation.study_result import (
    UNIFORM,
    StudyResult,
    TradeOff,
)
from bilstm_attn.studies.attention_as_explanation.study_run import StudyRun, model_digest
from bilstm_attn.training.opened_run import open_model
from bilstm_attn.training.run_dir import RunDir

PART_EXAMPLES = 1000  # examples per cached part of the attribution measures
TIMED_EXAMPLES = 4  # examples on which the reference loops are timed
FORMAT = 4  # of the cached results; raise it when their names or numbers change


def run_study(options: StudyOptions) -> int:
    """Studies runs on the test split and writes the report; returns the exit status.

    Raises:
      UserError: an option is out of range, or a run is missing, or has no attention or test split.
    """
    options.check()
    console = Console()
    run_dirs = [RunDir(folder) for folder in options.run]
    models = [load_model(run_dir.exported()) for run_dir in run_dirs]
    for run_dir, exported in zip(run_dirs, models, strict=True):
        require_attention(run_dir, exported)
    names = [exported.config.name for exported in models]
    require(
        len(set(names)) == len(names),
        f"run names must be distinct, got {', '.join(names)}; other seeds of a run are compared "
        "automatically",
    )
    group_sizes = [exported.config.data.group_size for exported in models]
    mesh = make_mesh(int(np.gcd.reduce([SMALL_BATCH_SIZE, *group_sizes])), options.devices)
    results = []
    for run_dir, exported in zip(run_dirs, models, strict=True):
        study_run = open_study_run(run_dir, exported, options, mesh, console)
        epochs = exported.config.train.epochs if options.epochs is None else options.epochs
        auxiliary_models = AuxiliaryModels(
            study_run, epochs, options.adversary_epochs or epochs, options.adversary_start
        )
        results.append(study_model(study_run, auxiliary_models, options))
    out = options.out or run_dirs[0].folder / "attention"
    write_report(results, out)
    console.print(f"wrote {out / 'report.md'}, {out / 'report.html'} and the figures")
    return 0


def require_attention(run_dir: RunDir, exported: Exported) -> None:
    """Raises a `UserError` if the model's pooling uses no attention."""
    pooling = exported.config.model.pooling
    require(
        POOLINGS[pooling].uses_attention,
        f"{run_dir.folder} has no attention to study: its pooling is {pooling!r}; give a run "
        "whose pooling is 'attention'",
    )


def open_study_run(
    run_dir: RunDir, exported: Exported, options: StudyOptions, mesh: Mesh, console: Console
) -> StudyRun:
    """Returns the run with the test examples drawn by the options' seed, and its result cache.

    Raises:
      UserError: the data set has no test split.
    """
    config = exported.config
    tokens = prepare_tokens(config.data, options.locations, console)
    require(
        "test" in tokens.splits,
        f"{config.data.dataset} has no test split to study {run_dir.folder} on; give a run that "
        "was trained on imdb",
    )
    model = open_model(exported, options.backend, console)
    test = split_examples(tokens, "test", exported.vocabulary, config)
    order = numpy_generator(options.seed, "examine").permutation(test.size)
    rows = np.sort(order[: options.limit])
    inputs = f"{model_digest(run_dir)}-{tokens.meta['sha256'][:12]}-format{FORMAT}"
    cache = ResultCache(
        run_dir.folder / "study" / f"{inputs}-{len(rows)}-examples-seed{options.seed}"
    )
    return StudyRun(run_dir, exported, tokens, model, test.take(rows), mesh, console, cache)


def study_model(
    study_run: StudyRun, auxiliary_models: AuxiliaryModels, options: StudyOptions
) -> StudyResult:
    """Returns all results for a run; cached ones are read, the others computed and cached.

    Raises:
      UserError: a cached result is damaged, the data differ from the run's, or logits are not
        finite.
    """
    cache = study_run.cache
    attention = cache.get("attention", lambda: measure_attention(study_run.evaluator()).as_json())
    attributions = measure_in_parts(study_run, options)
    loop_seconds = cache.get("reference loops", lambda: _time_reference_loops(study_run))
    auxiliary = compare_other_seeds(study_run)
    trade_off: TradeOff = []
    if auxiliary_models.epochs:
        auxiliary += auxiliary_models.trained_on_labels()
        trade_off = auxiliary_models.adversaries(options.strengths)
    if trade_off:
        uniform = next(model for model in auxiliary if model.name == UNIFORM)
        strength = furthest_adversary(trade_off, within=uniform.probability_change)
        auxiliary.append(auxiliary_models.guided_by_adversary(strength))
    return StudyResult(
        study_run.config.name,
        describe(study_run, auxiliary_models, options),
        study_run.exported.task,
        study_run.examples.labels,
        AttentionMeasures.from_json(attention),
        attributions,
        loop_seconds,
        auxiliary,
        trade_off,
        cache.seconds,
    )


def measure_in_parts(study_run: StudyRun, options: StudyOptions) -> AttributionMeasures:
    """Measures every attribution on `options.attribution_examples`, cached part by part."""
    attributions = {name: make() for name, make in ATTRIBUTIONS.items()}
    digest = text_sha256(repr(attributions))[:8]
    order = numpy_generator(options.seed, "few").permutation(study_run.examples.size)
    rows = np.sort(order[: options.attribution_examples])

    def measure(part: np.ndarray) -> dict[str, Any]:
        evaluator = study_run.evaluator(examples=study_run.examples.take(part))
        return measure_attributions(evaluator, attributions).as_json()

    parts = np.array_split(rows, -(-len(rows) // PART_EXAMPLES))
    return AttributionMeasures.from_json(
        [
            study_run.cache.get(
                f"attributions {digest} {len(rows)} part {number}", partial(measure, part)
            )
            for number, part in enumerate(parts, 1)
        ]
    )


def describe(study_run: StudyRun, auxiliary_models: AuxiliaryModels, options: StudyOptions) -> str:
    """Returns the report's line on the run: seed, examples, epochs of the auxiliary models."""
    config, epochs = study_run.config, auxiliary_models.epochs
    text = (
        f"seed {config.seed}; {study_run.examples.size:,} test examples of "
        f"{config.data.dataset}, drawn with seed {options.seed}"
    )
    if epochs:
        text += f"; auxiliary models trained for {epochs} epochs"
    if epochs and options.strengths:
        start = {"base": "the base model", "random": "random parameters"}[options.adversary_start]
        text += f"; adversaries for {auxiliary_models.adversary_epochs}, starting from {start}"
    return text


def _time_reference_loops(study_run: StudyRun) -> dict[str, float]:
    """Returns the mean seconds per example of the reference loops."""
    max_tokens, examples = study_run.config.data.max_tokens, study_run.examples
    rows = np.linspace(0, examples.size - 1, TIMED_EXAMPLES).astype(int)
    sample = examples.take(rows)
    bounds = zip(sample.starts, sample.stops, strict=True)
    texts = [clip(sample.ids[start:stop], max_tokens) for start, stop in bounds]
    study_run.console.print(
        f"{study_run.config.name}: timing the reference loops on {len(texts)} examples"
    )
    return time_reference_loops(study_run.model, study_run.exported.params, max_tokens, texts)
