"""The command line: flat options made from dataclasses (`options`), one class a command.

Exits: 0 done, 1 target missed, 2 bad input, 3 diverged, 130 Ctrl-C, 143 SIGTERM. Standard output
carries the result (one JSON document with --json), standard error everything else.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, cast

import tyro

from anybatch.errors import ExitCode, InputError
from anybatch.options.calibration import Calibration
from anybatch.options.doctor import Doctor
from anybatch.options.loss_oscillation import LossOscillation
from anybatch.options.lr_range import LRRange
from anybatch.options.noise_scale import NoiseScale
from anybatch.options.parts import named
from anybatch.options.plan import Explain, MakePlan
from anybatch.options.predict_scaling import PredictScaling
from anybatch.options.recipe import RecipeCommands
from anybatch.options.report import Compare, Report
from anybatch.options.reproduce import Reproduce
from anybatch.options.sharpness import Sharpness
from anybatch.options.study import StudyCommands
from anybatch.options.tasks import Tasks
from anybatch.options.throughput import Throughput
from anybatch.options.train import Train

__all__ = ["main"]


def _print(text: str = "") -> None:
    print(text)  # noqa: T201


def _print_error(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


_COMMANDS: Any = (
    named(Train, "train")
    | named(MakePlan, "plan")
    | named(Explain, "explain")
    | named(Calibration, "calibration")
    | named(LRRange, "lr-range")
    | named(Throughput, "throughput")
    | named(PredictScaling, "predict-scaling")
    | named(NoiseScale, "noise-scale")
    | named(LossOscillation, "loss-oscillation")
    | named(Sharpness, "sharpness")
    | named(Doctor, "doctor")
    | named(StudyCommands, "study")
    | named(Reproduce, "reproduce")
    | named(Report, "report")
    | named(Compare, "compare")
    | named(Tasks, "tasks")
    | named(RecipeCommands, "recipe")
)

_DESCRIPTION = """Measure a model, its data and a machine, and train at any batch size.

Example: anybatch train digits
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: without the program's name; None takes the process's.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given in (["--version"], ["-V"]):
        import importlib.metadata

        _print(f"anybatch {importlib.metadata.version('anybatch')}")
        return ExitCode.OK
    try:
        return int(_parsed(given).run())
    except SystemExit as end:  # help (0); a signal that a study's trial has dealt with (143)
        return end.code if isinstance(end.code, int) else ExitCode.OK
    except InputError as error:
        return _refused(str(error), given)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone; say nothing more
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except Exception as error:  # raised by a model or data set of the user's, or by a mistake here
        if sys.flags.dev_mode:
            raise
        return _refused(_described(error), given)


def _parsed(given: list[str]) -> Train:
    """The command that the arguments ask for.

    Raises:
        InputError: they break a rule; tyro draws a box, of which the text is kept.
        SystemExit: they asked for help, which has been printed.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            command = tyro.cli(
                tyro.conf.configure(tyro.conf.OmitSubcommandPrefixes)(_COMMANDS),
                prog="anybatch",
                description=_DESCRIPTION,
                args=given or ["--help"],
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise InputError("arguments", f"must be understood: {_unboxed(complaint)}") from None
    return cast("Train", command)


def _unboxed(complaint: io.StringIO) -> str:
    """The text in tyro's box, without its frame and its advice, as one line."""
    sections: list[list[str]] = [[]]
    for line in complaint.getvalue().splitlines()[1:-1]:
        text = line.strip("│| ")
        if set(text) <= {"─", "-"}:  # a rule across the box, or an empty line
            sections.append([])
        else:
            sections[-1].append(text)
    return "; ".join(filter(None, map(_section, sections)))


def _section(lines: list[str]) -> str:
    """A part of tyro's complaint as text; of suggestions the first one alone."""
    if not lines or lines[0].startswith(("For full helptext", "Argument helptext")):
        return ""
    if lines[0].startswith(("Arguments similar", "Perhaps you meant")):
        return f"did you mean {lines[1].split()[0]}?"
    return " ".join(lines)


def _refused(reason: str, given: list[str]) -> int:
    _print_error(f"anybatch: {reason}")
    if "--json" in given:
        _print(json.dumps({"error": reason}))
    return ExitCode.BAD_INPUT


def _described(error: Exception) -> str:
    """One line about an error that nobody foresaw."""
    if isinstance(error, OSError) and error.filename is not None:
        return str(InputError(str(error.filename), "must be usable", error.strerror))
    from anybatch.recipe_file import place_of

    what = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{what} ({place_of(error)}; python -X dev -m anybatch shows the whole way there)"


def script() -> None:
    """Entry point of the `anybatch` program."""
    code = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # A thread of gloo may still be letting go of a tensor, for which it needs Python: met by
        # the interpreter's end, it aborts the process ("terminate called", now and then).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
