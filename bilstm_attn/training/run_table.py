"""Curves of one run, and a table of several."""

import dataclasses
import io
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bilstm_attn.config import Config
from bilstm_attn.errors import UserError
from bilstm_attn.runtime.files import write_atomically
from bilstm_attn.training.run_dir import RunDir


def draw_curves(records: Sequence[dict[str, Any]], split: str, path: Path) -> None:
    """Draws loss and accuracy of training and of `split` by epoch, as a PNG at `path`.

    Only what was logged is drawn: an objective may have no term called accuracy.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    epochs = [record for record in records if record["kind"] == "epoch"]
    steps = [record for record in records if record["kind"] == "train"]
    steps_per_epoch = epochs[0]["step"]
    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    for axes, name in ((losses, "loss"), (accuracies, "accuracy")):
        logged = [record for record in steps if name in record]
        axes.plot(
            [record["step"] / steps_per_epoch for record in logged],
            [record[name] for record in logged],
            color="tab:blue",
            alpha=0.3,
            label="train, by step",
        )
        ends = [record["epoch"] for record in epochs]
        for kind, color in (("train", "tab:blue"), (split, "tab:orange")):
            if f"{kind}_{name}" not in epochs[0]:
                continue
            values = [record[f"{kind}_{name}"] for record in epochs]
            axes.plot(ends, values, "o-", color=color, label=f"{kind}, by epoch")
        axes.set(xlabel="epoch", title=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    losses.set(title="loss")
    accuracies.yaxis.set_major_formatter(PercentFormatter(1.0))
    accuracies.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_atomically(path, image.getvalue())


def summarise(folders: Sequence[Path]) -> str:
    """Returns a Markdown table of the runs below `folders`, one row per recipe and epoch.

    Each cell is mean ± sample standard deviation over seeds.

    Raises:
      UserError: there are no finished epochs.
    """
    rows: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    recipes: dict[str, Config] = {}
    for folder in folders:
        for path in sorted(folder.rglob("metrics.jsonl")):
            run = RunDir(path.parent)
            config = run.config()
            same = dataclasses.replace(config, seed=0)
            if recipes.setdefault(config.name, same) != same:
                raise UserError(
                    f"{run.folder} has another config than the runs of {config.name} before it, so "
                    "they have no mean; report it alone"
                )
            for record in run.records():
                if record["kind"] == "epoch":
                    split = config.train.eval_split
                    key = config.name, f"{split}, epoch {record['epoch']}"
                    rows[key].append((record[f"{split}_accuracy"], record["seconds"]))
                elif record["kind"] == "final":
                    rows[config.name, f"{record['split']}, at the end"].append(
                        (record["accuracy"], float("nan"))
                    )
    if not rows:
        raise UserError(f"no epochs in {', '.join(map(str, folders))}; give folders of runs")
    lines = ["| recipe | measured on | seeds | accuracy | seconds |", "|---|---|---|---|---|"]
    for (name, where), cells in rows.items():
        accuracies, seconds = zip(*cells, strict=True)
        accuracy = _spread([100 * value for value in accuracies], 2)
        lines.append(f"| {name} | {where} | {len(cells)} | {accuracy} % | {_spread(seconds, 0)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float], digits: int) -> str:
    if values[0] != values[0]:  # NaN: not measured
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
