"""Explanations as one self-contained HTML file, without network access."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bilstm_attn.explain.attribution import Attribution
from bilstm_attn.explain.explanation import Explanation

TEMPLATE = Path(__file__).with_name("page.html")
DIGITS = 5  # significant digits of a weight, in the data and in the tooltip


def label_of(name: str) -> str:
    """Returns an attribution's name for display.

    >>> label_of("gradient_x_input")
    'gradient × input'
    """
    return name.replace("_x_", " × ").replace("_", " ")


def as_json(explanation: Explanation) -> dict[str, Any]:
    """Returns an explanation as plain JSON.

    `pieces` is the text, split so that words have odd indices and what separates them even ones.
    """
    pieces, end = [], 0
    for start, stop in explanation.spans:
        pieces += [explanation.text[end:start], explanation.text[start:stop]]
        end = stop
    disagreement = explanation.disagreement
    return {
        "pieces": [*pieces, explanation.text[end:]],
        "skipped": explanation.skipped,
        "label": explanation.label,
        "predicted": explanation.predicted,
        "probability": round(explanation.probability, 6),
        "disagreement": None if math.isnan(disagreement) else round(disagreement, 4),
        "completeness_error": explanation.completeness_error,
        "weights": {
            name: [_short(weight) for weight in weights.tolist()]
            for name, weights in explanation.weights.items()
        },
        "start": {name: _short(weight) for name, weight in explanation.start.items()} or None,
    }


def _short(weight: float) -> float:
    return float(f"{weight:.{DIGITS}g}")


def make_page(
    explanations: Sequence[Explanation],
    names: Sequence[str],
    attributions: Mapping[str, Attribution],
    *,
    about: str,
    note: str = "",
) -> str:
    """Returns the page.

    Args:
      explanations: at least one.
      names: one per explanation.
      attributions: those of the explanations, by name.
      about: the line above the texts.
      note: a highlighted line below it, or empty.
    """
    data = {
        "about": about,
        "note": note,
        "label_names": explanations[0].label_names,
        "attributions": [
            {"name": name, "label": label_of(name), "signed": attribution.signed}
            for name, attribution in attributions.items()
        ],
        "texts": [
            as_json(explanation) | {"name": name}
            for explanation, name in zip(explanations, names, strict=True)
        ],
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # No text can close the element that holds the data.
    escaped = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return TEMPLATE.read_text(encoding="utf-8").replace("/*DATA*/", escaped)
