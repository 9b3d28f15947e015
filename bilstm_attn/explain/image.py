"""Explanations as a picture: every word in a box shaded by its weight."""

import io
from collections.abc import Mapping, Sequence

from bilstm_attn.explain.attribution import Attribution
from bilstm_attn.explain.explanation import Explanation
from bilstm_attn.explain.html import label_of
from bilstm_attn.explain.text_shading import shades_of

COLUMNS = 100  # characters per line
TOWARD_LAST, TOWARD_FIRST, UNSIGNED = "#2166ac", "#d97100", "#7851a9"  # colour-blind safe


def lay_out(words: Sequence[str], columns: int = COLUMNS) -> list[list[int]]:
    """Returns the indices of the words in each line of at most `columns` characters.

    >>> lay_out(["so", "long", "and"], columns=7)
    [[0, 1], [2]]
    """
    lines: list[list[int]] = [[]]
    used = 0
    for at, word in enumerate(words):
        if lines[-1] and used + 1 + len(word) > columns:
            lines.append([])
            used = 0
        used += len(word) + bool(lines[-1])
        lines[-1].append(at)
    return lines


def draw_texts(
    explanations: Sequence[Explanation],
    names: Sequence[str],
    attributions: Mapping[str, Attribution],
) -> bytes:
    """Returns a PNG of every text, once per attribution; without words that are not read."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    blocks = []
    for explanation, name in zip(explanations, names, strict=True):
        spans = explanation.spans[explanation.skipped :]
        words = [explanation.text[start:stop] for start, stop in spans]
        label = f", label {explanation.label_name}" if explanation.label_name else ""
        title = (
            f"text {name}: predicted {explanation.prediction}{label}, probability of "
            f"{explanation.label_names[-1]} {explanation.probability:.3f}"
        )
        blocks += [
            (
                f"{title}, by {label_of(attribution_name)}",
                words,
                explanation.weights[attribution_name],
                attribution.signed,
            )
            for attribution_name, attribution in attributions.items()
        ]
    first, *_, last = explanations[0].label_names
    legend = {
        f"toward {last}": TOWARD_LAST,
        f"toward {first}": TOWARD_FIRST,
        "unsigned weight": UNSIGNED,
    }
    layouts = [lay_out(words) for _, words, *_ in blocks]
    height = 2 + sum(len(lines) + 2 for lines in layouts)
    figure = Figure(figsize=(11, 0.22 * height + 0.2), dpi=110)
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set(xlim=(0, COLUMNS + 1), ylim=(height, 0))
    axes.axis("off")
    mono = {"family": "monospace", "fontsize": 9, "va": "center", "parse_math": False}

    def shade(left: int, top: float, width: int, colour: str, alpha: float) -> None:
        corner = left, top + 0.05
        axes.add_patch(Rectangle(corner, width, 0.9, color=colour, alpha=alpha, lw=0))

    for number, (meaning, colour) in enumerate(legend.items()):
        shade(30 * number, 0.0, 2, colour, 0.7)
        axes.text(30 * number + 3, 0.5, meaning, fontsize=9, va="center")
    top = 2.0
    for (title, words, weights, signed), lines in zip(blocks, layouts, strict=True):
        axes.text(0, top + 0.5, title, fontsize=9, weight="bold", va="center", parse_math=False)
        shades = shades_of(weights.tolist(), signed=signed)
        for number, line in enumerate(lines, start=1):
            left = 0
            for at in line:
                colour = UNSIGNED
                if signed:
                    colour = TOWARD_LAST if weights[at] > 0 else TOWARD_FIRST
                shade(left, top + number, len(words[at]), colour, 0.7 * shades[at])
                axes.text(left, top + number + 0.5, words[at], **mono)
                left += len(words[at]) + 1
        top += len(lines) + 2
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()
