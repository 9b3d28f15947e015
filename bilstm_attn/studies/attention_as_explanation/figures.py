"""The figures of the report."""

import io
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bilstm_attn.studies.attention_as_explanation.study_result import StudyResult, TradeOff

MAX_DIVERGENCE = math.log(2)  # of Jensen and Shannon, in nats
COLOURS = ("tab:orange", "tab:blue")  # of the labels
BINS = 4  # of the largest attention weight, as in Jain and Wallace, 2019
LABEL_DISTANCE = 0.03  # of the axes' size; closer points share a label


def draw_violins(result: StudyResult, values: np.ndarray, label: str, upper: float) -> bytes:
    """Draws the distribution of per-example values by largest weight and predicted label.

    Args:
      result: gives the largest attention weights and the logits.
      values: one per example.
      label: of the horizontal axis.
      upper: its upper limit.
    """

    def draw(axes: Any) -> None:
        bins = np.minimum((result.attention.max_weight * BINS).astype(int), BINS - 1)
        predicted = result.predicted
        for side, (name, colour) in enumerate(zip(result.task.label_names, COLOURS, strict=True)):
            for number in range(BINS):
                selected = (bins == number) & (predicted == side)
                if selected.sum() > 1:
                    parts = axes.violinplot(
                        values[selected],
                        [number + 0.22 * (2 * side - 1)],
                        orientation="horizontal",
                        widths=0.4,
                        showmedians=True,
                        showextrema=False,
                    )
                    parts["bodies"][0].set_color(colour)
                    parts["cmedians"].set_color(colour)
            axes.plot([], [], color=colour, label=f"predicted {name}")
        edges = [
            f"{number / BINS:.2g}–{(number + 1) / BINS:.2g}\n{(bins == number).sum():,} examples"
            for number in range(BINS)
        ]
        axes.set_yticks(range(BINS), edges)
        axes.set(xlim=(0, upper), ylim=(-0.6, BINS - 0.4))
        axes.set(xlabel=label, ylabel="largest attention weight")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)

    return _figure(draw)


def draw_histograms(
    values: dict[str, np.ndarray],
    limits: tuple[float, float],
    label: str,
    colours: Mapping[str, str] | None = None,
) -> bytes:
    """Draws one histogram per named set of values, in the given or default colours."""

    def draw(axes: Any) -> None:
        for name, each in values.items():
            colour = (colours or {}).get(name)
            style = {"histtype": "step", "linewidth": 1.6, "color": colour}
            axes.hist(each, bins=40, range=limits, label=name, **style)
        axes.set(xlabel=label, ylabel="examples", xlim=limits)
        axes.legend(frameon=False, loc="best")

    return _figure(draw)


def draw_trade_off(result: StudyResult) -> bytes:
    """Draws change of probability against divergence of attention, for all auxiliary models."""

    def draw(axes: Any) -> None:
        curve = [model for _, model in result.trade_off]
        axes.plot(
            [model.divergence for model in curve],
            [model.probability_change for model in curve],
            "o--",
            color="tab:purple",
            label="trained adversary",
        )
        for number, (position, label) in enumerate(label_points(result.trade_off)):
            axes.annotate(
                label,
                position,
                textcoords="offset points",
                # Alternately below and above, so that neighbouring labels do not overlap.
                xytext=(-3, 6) if number % 2 else (5, -12),
                horizontalalignment="right" if number % 2 else "left",
                fontsize=8,
            )
        seeds = result.other_seeds
        axes.plot(
            [model.divergence for model in seeds],
            [model.probability_change for model in seeds],
            "k^",
            label="other seeds" if seeds else None,
        )
        others = [
            model
            for model in result.auxiliary
            if model.divergence is not None and model not in seeds
        ]
        for model, marker in zip(others, itertools.cycle("sD*Pph"), strict=False):
            axes.plot([model.divergence], [model.probability_change], marker, label=model.name)
        axes.set(xlim=(-0.01, MAX_DIVERGENCE + 0.07), ylim=(0, None))
        axes.set(
            xlabel="mean JSD from the base model's attention, nats (at most 0.693)",
            ylabel="mean change of the probability",
        )
        axes.legend(frameon=False)

    return _figure(draw)


def label_points(trade_off: TradeOff) -> list[tuple[tuple[float, float], str]]:
    """Returns positions and labels of the adversaries' strengths; close points share a label."""
    top = max(model.probability_change for _, model in trade_off) or 1.0
    labels: list[tuple[tuple[float, float], str]] = []
    for strength, model in trade_off:
        x, y = model.divergence or 0.0, model.probability_change
        if labels:
            last, label = labels[-1]
            distance = math.hypot((x - last[0]) / MAX_DIVERGENCE, (y - last[1]) / top)
            if distance < LABEL_DISTANCE:
                labels[-1] = last, f"{label}, {strength:g}"
                continue
        labels.append(((x, y), f"λ {strength:g}"))
    return labels


def _figure(draw: Callable[[Any], None]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), dpi=90, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def draw_figures(result: StudyResult) -> dict[str, bytes]:
    """Returns every figure as a PNG, by name."""
    attention = result.attention
    by_label = {
        name: attention.adversary[result.predicted == side]
        for side, name in enumerate(result.task.label_names)
    }
    colours = dict(zip(result.task.label_names, COLOURS, strict=True))
    taus = {name: agreement.taus for name, agreement in attention.agreements.items()}
    figures = {
        "permutation": draw_violins(
            result, attention.permutation, "median change of the probability", 1.0
        ),
        "adversary": draw_histograms(by_label, (0.0, MAX_DIVERGENCE), "ε-max JSD, nats", colours),
        "agreement": draw_histograms(taus, (-1.0, 1.0), "Kendall's τ"),
    }
    if result.other_seeds:
        divergences = np.array([model.divergences for model in result.other_seeds], float)
        label = "JSD from the base model's attention, nats: median over seeds"
        medians = np.median(divergences, axis=0)
        figures["seeds"] = draw_violins(result, medians, label, MAX_DIVERGENCE)
    return figures | ({"trade-off": draw_trade_off(result)} if result.trade_off else {})


CAPTIONS = {
    "permutation": "Median change of the probability over 100 permutations of each example's "
    "attention, by its largest weight.",
    "adversary": "Largest divergence, among five adversarial attentions per example, that changes "
    "the probability by at most 0.05; by predicted label.",
    "agreement": "Agreement of attention, gradient and leave one out, per example.",
    "seeds": "Divergence of other seeds' attention, per example, by its largest weight.",
    "trade-off": "Adversaries, trained to match the base model's predictions with other "
    "attention, and the other auxiliary models.",
}
