"""`anybatch doctor`: look for what is commonly wrong, keep it in a run folder, say it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anybatch.commands.measure import exit_code, measure, summary_of
from anybatch.measurement import Measurement

if TYPE_CHECKING:
    from anybatch.options.doctor import Doctor

__all__ = ["doctor", "summary"]


def doctor(options: Doctor) -> int:
    """Carry out `anybatch doctor` and return its exit code: 1 where something was found.

    Raises:
        InputError: anything given that breaks a rule.
    """
    from anybatch.measuring.doctor import DoctorSettings, examine

    settings = DoctorSettings(seconds=options.seconds, timing=not options.no_timing)
    measured = measure(
        options,
        "doctor",
        lambda task, recipe: examine(task, recipe, settings=settings, progress=not options.json),
        summary,
    )
    return exit_code(not measured.findings)


def summary(measured: Measurement) -> str:
    """What was found as text: a row for each check, then what to do, and what it cost."""
    texts = measured.settings["checks"]
    rows = [
        [name, "ok" if ok else "FOUND", text]
        for (name, text), ok in zip(texts.items(), measured.samples["ok"], strict=True)
    ]
    return summary_of(measured, ["check", "result", ""], rows)
