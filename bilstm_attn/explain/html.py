"""Explained reviews as one HTML file that needs nothing else: no network, no other file."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bilstm_attn.explain.attribution import Attribution
from bilstm_attn.explain.explained import Explained

TEMPLATE = Path(__file__).with_name("page.html")
DIGITS = 5  # of a weight, here and under the pointer


def label_of(name: str) -> str:
    """Returns an attribution's name as people read it.

    >>> label_of("gradient_x_input")
    'gradient × input'
    """
    return name.replace("_x_", " × ").replace("_", " ")


def as_json(explained: Explained) -> dict[str, Any]:
    """Returns a review as plain JSON: its text in pieces, between words and words in turn."""
    pieces, at = [], 0
    for start, stop in explained.spans:
        pieces += [explained.text[at:start], explained.text[start:stop]]
        at = stop
    apart = explained.disagreement
    return {
        "pieces": [*pieces, explained.text[at:]],
        "skipped": len(explained.spans) - explained.read,
        "label": explained.label,
        "probability": round(explained.probability, 6),
        "disagreement": None if math.isnan(apart) else round(apart, 4),
        "completeness_error": explained.completeness_error,
        "weights": {
            name: [_short(weight) for weight in weights.tolist()]
            for name, weights in explained.weights.items()
        },
        "start": {name: _short(weight) for name, weight in explained.start.items()} or None,
    }


def _short(weight: float) -> float:
    return float(f"{weight:.{DIGITS}g}")


def make_page(
    reviews: Sequence[Explained],
    names: Sequence[str],
    attributions: Mapping[str, Attribution],
    *,
    about: str,
    note: str = "",
) -> str:
    """Returns the page; `names` are the reviews' own, `about` and `note` lines above them."""
    data = {
        "about": about,
        "note": note,
        "attributions": [
            {"name": name, "label": label_of(name), "signed": one.signed}
            for name, one in attributions.items()
        ],
        "reviews": [
            as_json(review) | {"name": name} for review, name in zip(reviews, names, strict=True)
        ],
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Whatever stands in a review, it cannot end the element that holds the data.
    escaped = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return TEMPLATE.read_text(encoding="utf-8").replace("/*DATA*/", escaped)
