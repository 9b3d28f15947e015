"""What `scripts/study_attention.py` does: puts runs through everything, and writes the report.

What was found about a run is kept beside it, piece by piece, so that an examination that was
stopped goes on where it was.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bilstm_attn.config import BackendChoice, require, require_seed
from bilstm_attn.data.splits import split_examples
from bilstm_attn.data.token_cache import DataLocations, prepare_tokens
from bilstm_attn.data.vocabulary import clip
from bilstm_attn.explain.attribution import ATTRIBUTIONS
from bilstm_attn.explain.explained import FEWEST_AT_ONCE
from bilstm_attn.inference.exported import load_model
from bilstm_attn.nn.backend import choose_backend
from bilstm_attn.nn.model import Model
from bilstm_attn.nn.pooling import POOLINGS
from bilstm_attn.runtime.compile_cache import enable_compile_cache
from bilstm_attn.runtime.console import Console
from bilstm_attn.runtime.devices import make_mesh
from bilstm_attn.runtime.files import text_sha256
from bilstm_attn.runtime.prng import numpy_generator
from bilstm_attn.studies.attention_as_explanation.auxiliary_models import (
    AdversaryStart,
    Companions,
    furthest,
    other_seeds,
)
from bilstm_attn.studies.attention_as_explanation.measurements import (
    Attributions,
    JainWallace,
    examine_attention,
    examine_attributions,
)
from bilstm_attn.studies.attention_as_explanation.reference_loops import time_naive
from bilstm_attn.studies.attention_as_explanation.report import write_report
from bilstm_attn.studies.attention_as_explanation.result_cache import Kept
from bilstm_attn.studies.attention_as_explanation.study_result import EVEN, Examined, TradeOff
from bilstm_attn.studies.attention_as_explanation.study_run import Subject, digest_of_model, take
from bilstm_attn.training.run_dir import RunDir

PART = 1000  # reviews, at most, that are asked about everything before it is kept
SAMPLE = 4  # reviews for which naive loops are timed
FORM = 3  # of what is kept; one more where an experiment changes its numbers


def run_examination(
    folders: Sequence[Path],
    *,
    out: Path | None,
    limit: int,
    few: int,
    seed: int,
    strengths: Sequence[float],
    epochs: int | None,
    adversary_epochs: int | None,
    adversary_start: AdversaryStart,
    locations: DataLocations,
    devices: int | None,
    backend: BackendChoice,
) -> int:
    """Examines runs on the test split and writes the report; returns the exit status.

    Raises:
      UserError: a run has no attention, or no test split, or is none; says what to do.
    """
    require(bool(folders), "give at least one run's folder")
    require(limit > 0, f"--limit must be above 0, got {limit}")
    require_seed(seed)
    require(few > 0, f"--few must be above 0, got {few}")
    require(epochs is None or epochs >= 0, f"--epochs must be at least 0, got {epochs}")
    require(
        adversary_epochs is None or adversary_epochs > 0,
        f"--adversary-epochs must be above 0, got {adversary_epochs}",
    )
    for one in strengths:
        require(0 <= one < math.inf, f"--strengths must be finite and at least 0, got {one}")
    console = Console()
    runs = [RunDir(folder) for folder in folders]
    loaded = [load_model(run.exported()) for run in runs]
    for run, exported in zip(runs, loaded, strict=True):
        pooling = exported.config.model.pooling
        require(
            POOLINGS[pooling].uses_attention,
            f"{run.folder} has no attention to examine: its pooling is {pooling!r}; give a run "
            "whose pooling is 'attention'",
        )
    names = [exported.config.name for exported in loaded]
    require(
        len(set(names)) == len(names),
        f"the runs must have names of their own, got {', '.join(names)}; other seeds beside a run "
        "are compared with it",
    )
    groups = [exported.config.data.group_size for exported in loaded]
    mesh = make_mesh(int(np.gcd.reduce([FEWEST_AT_ONCE, *groups])), devices)
    enable_compile_cache(console.print)
    found = []
    for run, exported in zip(runs, loaded, strict=True):
        tokens = prepare_tokens(exported.config.data.dataset, locations, console)
        require(
            "test" in tokens.splits,
            f"{exported.config.data.dataset} has no test split to examine {run.folder} on; give a "
            "run that was trained on imdb",
        )
        model = Model(
            exported.config.model,
            exported.vocabulary.size,
            choose_backend(backend, exported.config, console.print),
        )
        whole = split_examples(tokens, "test", exported.vocabulary, exported.config)
        drawn = np.sort(numpy_generator(seed, "examine").permutation(whole.size)[:limit])
        of_what = f"{digest_of_model(run)}-{tokens.meta['sha256'][:12]}-form{FORM}"
        setting = f"{of_what}-{len(drawn)}-reviews-seed{seed}"
        kept = Kept(run.folder / "examination" / setting)
        subject = Subject(run, exported, tokens, model, take(whole, drawn), mesh, console, kept)
        number = exported.config.train.epochs if epochs is None else epochs
        companions = Companions(subject, number, adversary_epochs or number, adversary_start)
        about = (
            f"seed {exported.config.seed}, on {len(drawn):,} test reviews of "
            f"{exported.config.data.dataset}, drawn with seed {seed}"
        )
        if number:
            about += f"; epochs of models trained beside it: {number}"
        if number and strengths:
            about += f", of adversaries: {companions.adversary_epochs}, from {adversary_start}"
        few_of_them = np.sort(numpy_generator(seed, "few").permutation(len(drawn))[:few])
        found.append(examine(subject, companions, strengths, few_of_them, about))
    out = out or runs[0].folder / "attention"
    write_report(found, out)
    console.print(f"wrote {out / 'report.md'}, {out / 'report.html'} and the figures beside them")
    return 0


def examine(
    subject: Subject,
    companions: Companions,
    strengths: Sequence[float],
    few: np.ndarray,
    about: str,
) -> Examined:
    """Returns everything about a run; what is kept, from there.

    Args:
      strengths: of the adversaries to train.
      few: of which reviews everything is asked of every attribution.
      about: what the report says of the run.

    Raises:
      UserError: a kept piece is damaged, the data are not those of the run, or answers are not
        finite.
    """
    kept, own = subject.kept, subject.asking()
    attention = kept("attention", lambda: examine_attention(own).as_json())
    everyone = {name: make() for name, make in ATTRIBUTIONS.items()}
    which = text_sha256(repr(everyone))[:8]

    def measure(part: np.ndarray) -> dict[str, Any]:
        some = subject.asking(examples=take(subject.examples, part))
        return examine_attributions(some, everyone).as_json()

    attributions = [
        kept(f"attributions {which} {len(few)} part {number}", partial(measure, part))
        for number, part in enumerate(np.array_split(few, -(-len(few) // PART)), 1)
    ]
    naive, trained = kept("naive loops", lambda: _time_naive(subject)), other_seeds(subject)
    trade_off: TradeOff = []
    if companions.epochs:
        trained += companions.labelled()
        trade_off = companions.adversaries(strengths)
    if trade_off:
        even = next(one for one in trained if one.name == EVEN)
        trained.append(companions.misled(furthest(trade_off, within=even.change)))
    return Examined(
        subject.config.name,
        about,
        subject.examples.labels,
        JainWallace.from_json(attention),
        Attributions.from_json(attributions),
        naive,
        trained,
        trade_off,
        kept.seconds,
    )


def _time_naive(subject: Subject) -> dict[str, float]:
    """Returns the mean seconds that loops over words and draws take for a review."""
    most, examples = subject.config.data.max_tokens, subject.examples
    sample = take(examples, np.linspace(0, examples.size - 1, SAMPLE).astype(int))
    bounds = zip(sample.starts, sample.stops, strict=True)
    reviews = [clip(sample.ids[slice(*each)], most) for each in bounds]
    subject.console.print(f"{subject.config.name}: timing naive loops over {len(reviews)} reviews")
    return time_naive(subject.model, subject.exported.params, most, reviews)
