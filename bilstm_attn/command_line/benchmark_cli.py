"""Times this package and other implementations: `python scripts/benchmark.py [--quick]`."""

import dataclasses
from typing import Annotated

from tyro.conf import arg

from bilstm_attn.benchmark.benchmark_options import BenchmarkOptions
from bilstm_attn.data.token_cache import DataLocations
from bilstm_attn.runtime.cli import PluginNames, parse
from bilstm_attn.runtime.plugins import load_plugins


@dataclasses.dataclass(frozen=True)
class Arguments(BenchmarkOptions):
    """The command line."""

    plugin: PluginNames = ()
    """A plug-in to load: a Python file, a module or an installed entry point; may be repeated."""
    locations: Annotated[DataLocations, arg(name="")] = dataclasses.field(
        default_factory=DataLocations
    )


def main(arguments: list[str], program: str = "scripts/benchmark.py") -> int:
    """Measures; returns the exit status."""
    options = parse(
        Arguments,
        arguments,
        program=program,
        description="Times training and inference of this package and of other implementations on "
        "real texts. Each one runs in its own process, with the same memory settings; their calls "
        "are interleaved, and each one's largest error against a float64 loop is reported.",
    )
    load_plugins(options.plugin)
    from bilstm_attn.benchmark.benchmark_command import run_benchmark

    return run_benchmark(options)
