"""`python -m benchmarks`: run what has no result yet, then write RESULTS.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from anybatch.errors import ExitCode
from benchmarks import (
    article2,
    cifar10_jpeg,
    critical_batch,
    full_batch_step,
    kfac_benefit,
    kfac_cost,
    lr_range,
    mnist,
    noise_scale,
    optimizer_speed,
    overhead,
    plan_predictions,
    plan_regret,
    reproductions,
    resume,
    scaling,
    truth_gallery,
)
from benchmarks.harness import Benchmark, Folders, parse_seconds, run_benchmarks, stored_results
from benchmarks.report import write_report

__all__ = ["main"]

_BENCHMARKS: tuple[Benchmark, ...] = (
    overhead,
    optimizer_speed,
    resume,
    mnist,
    cifar10_jpeg,
    truth_gallery,
    lr_range,
    noise_scale,
    critical_batch,
    article2,
    full_batch_step,
    plan_regret,
    plan_predictions,
    reproductions,
    kfac_cost,
    kfac_benefit,
    scaling,
)
_HERE = Path(__file__).parent
_FOLDERS = Folders(results=_HERE / "results", runs=_HERE / "runs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run benchmarks and return an exit code: 0, 1 if a trial failed, 130 after Ctrl-C.

    Args:
        arguments: without the program's name; None takes the process's.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    unknown = set(options.names) - {benchmark.NAME for benchmark in _BENCHMARKS}
    if unknown:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; --list shows them")
    chosen = [b for b in _BENCHMARKS if not options.names or b.NAME in options.names]
    if options.list:
        for benchmark in chosen:
            done, planned = len(stored_results(benchmark, _FOLDERS)), len(benchmark.trials())
            print(f"{benchmark.NAME:14} {done:2} of {planned:2} trials  {benchmark.TITLE}")
        return ExitCode.OK
    try:
        good = run_benchmarks(chosen, _FOLDERS, seconds=options.seconds)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", flush=True)
        return ExitCode.INTERRUPTED
    finally:
        write_report(_BENCHMARKS, _FOLDERS, _HERE / "RESULTS.md")
    return ExitCode.OK if good else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [benchmark.NAME for benchmark in _BENCHMARKS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all")
    parser.add_argument(
        "--for", dest="seconds", type=_duration, metavar="TIME", help='such as "150m"'
    )
    parser.add_argument("--list", action="store_true", help="show what there is and what is done")
    return parser


def _duration(text: str) -> float:
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
