"""Kinds of measurements and their pictures; a kind without one is drawn as dots with intervals."""

from __future__ import annotations

from anybatch.drawings.branches import BRANCHES
from anybatch.drawings.doctor import DOCTOR
from anybatch.drawings.loss_oscillation import LOSS_OSCILLATION
from anybatch.drawings.noise_scale import NOISE_SCALE
from anybatch.drawings.picture import Drawing
from anybatch.drawings.pilot import PILOT
from anybatch.drawings.sharpness import SHARPNESS
from anybatch.drawings.stage_times import STAGE_TIMES
from anybatch.drawings.throughput import THROUGHPUT

__all__ = ["DRAWINGS"]

DRAWINGS: dict[str, Drawing] = {
    "branches": BRANCHES,
    "doctor": DOCTOR,
    "loss-oscillation": LOSS_OSCILLATION,
    "noise-scale": NOISE_SCALE,
    "pilot": PILOT,
    "sharpness": SHARPNESS,
    "stage-times": STAGE_TIMES,
    "throughput": THROUGHPUT,
}
