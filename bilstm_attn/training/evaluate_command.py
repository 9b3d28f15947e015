"""The evaluate command: every measure of a run's exported model on a split."""

from bilstm_attn.data.splits import split_examples
from bilstm_attn.data.token_cache import TokenCache, prepare_tokens
from bilstm_attn.errors import UserError
from bilstm_attn.inference.evaluate import (
    make_logits_step,
    predict_logits,
    require_finite,
    save_predictions,
)
from bilstm_attn.runtime.console import Console
from bilstm_attn.runtime.devices import replicate
from bilstm_attn.runtime.distributed import on_main_process
from bilstm_attn.training.opened_run import OpenedRun, open_run
from bilstm_attn.training.options import EvaluateOptions


def run_evaluation(options: EvaluateOptions) -> int:
    """Measures a run's exported model on a split and prints it; returns the exit status.

    Raises:
      UserError: not a run, no such split, or no data.
    """
    console = Console()
    run = open_run(options.run, options.backend, options.devices, console)
    tokens = prepare_tokens(run.exported.config.data, options.locations, console)
    split = options.split or ("test" if "test" in tokens.splits else "validation")
    measured = measure_split(run, tokens, split, console)
    console.print(f"split              {split}")
    for name, value in measured.items():
        console.print(f"{name.replace('_', ' '):18} {value:.6f}")
    console.print(f"predictions        {run.run_dir.predictions(split)}")
    return 0


def measure_split(
    run: OpenedRun, tokens: TokenCache, split: str, console: Console
) -> dict[str, float]:
    """Returns every measure of a run's model over a labelled split; saves the predictions.

    Raises:
      UserError: there is no such split, or it has no labels.
    """
    config, model = run.exported.config, run.model
    examples = split_examples(tokens, split, run.exported.vocabulary, config)
    if (examples.labels < 0).any():
        raise UserError(f"split {split!r} has no labels to measure against; give --split test")
    with console.bar(f"evaluate {split}", examples.size, 0) as bar:
        logits = predict_logits(
            make_logits_step(model, run.mesh),
            replicate(run.exported.params, run.mesh),
            examples,
            config.data,
            run.mesh,
            bar.advance,
        )
    require_finite(logits, f"split {split!r}")
    path = run.run_dir.predictions(split)
    on_main_process(lambda: save_predictions(path, examples, logits, model.task))
    return model.task.measure(logits, examples.labels)
