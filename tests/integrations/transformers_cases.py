"""lr of each update inside of Hugging Face's Trainer, and its library's own schedules."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import huggingface_schedule
import torch
import transformers
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import Trainer, TrainingArguments

import anybatch as ab

T, WARMUP = 41, 7
UP = ab.updates(WARMUP)
PAIRS: dict[str, tuple[Callable[[Optimizer], LRScheduler], Any]] = {
    "constant": (
        lambda o: transformers.get_constant_schedule_with_warmup(o, WARMUP),
        ab.Warmup(duration=UP),
    ),
    "linear": (
        lambda o: transformers.get_linear_schedule_with_warmup(o, WARMUP, T),
        ab.Warmup(duration=UP, into=ab.Linear()),
    ),
    "cosine": (
        lambda o: transformers.get_cosine_schedule_with_warmup(o, WARMUP, T),
        ab.Warmup(duration=UP, into=ab.Cosine()),
    ),
    "hard restarts": (
        lambda o: transformers.get_cosine_with_hard_restarts_schedule_with_warmup(o, WARMUP, T, 2),
        ab.Warmup(duration=UP, into=ab.SGDR(first_cycle=ab.fraction(0.5))),
    ),
    "polynomial": (
        lambda o: transformers.get_polynomial_decay_schedule_with_warmup(
            o, WARMUP, T, lr_end=0.01, power=1.5
        ),
        ab.Warmup(duration=UP, into=ab.Polynomial(power=1.5, end=0.01 / 0.3)),
    ),
    "inverse square root": (
        lambda o: transformers.get_inverse_sqrt_schedule(o, WARMUP),
        ab.InverseSquareRoot(warmup=UP),
    ),
}
for shape in ("linear", "cosine", "1-sqrt"):
    PAIRS[f"warm-up, stable, {shape} decay"] = (
        lambda o, shape=shape: transformers.get_wsd_schedule(
            o, WARMUP, 12, num_training_steps=T, decay_type=shape
        ),
        ab.WarmupStableDecay(warmup=UP, decay=ab.updates(12), shape=shape),
    )


def trace(make: Callable[[Optimizer], LRScheduler]) -> list[float]:
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = make(optimizer)
    lrs = []
    for _ in range(T):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return lrs


def fit(max_steps: int, resume: bool) -> list[float]:
    """Train to `max_steps` of a schedule of sixteen, saving every eight."""
    data = [{"inputs": torch.randn(8), "labels": torch.tensor(n % 2)} for n in range(32)]
    model, keep = huggingface_schedule.Classifier(), huggingface_schedule.Keep()
    optimizer = SGD(model.parameters(), lr=0.4)
    schedule = ab.Warmup(duration=ab.updates(4), into=ab.Cosine())
    scheduler = ab.schedule_as_lr_scheduler(schedule, optimizer, total_updates=16)
    arguments = TrainingArguments(
        output_dir="out",
        max_steps=max_steps,
        save_steps=8,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    optimizers = (optimizer, scheduler)
    trainer = Trainer(model, arguments, train_dataset=data, optimizers=optimizers, callbacks=[keep])
    trainer.train(resume_from_checkpoint="out/checkpoint-8" if resume else None)
    return keep.lrs


if __name__ == "__main__":
    pairs = {}
    for name, (theirs, schedule) in PAIRS.items():
        ours = trace(lambda o, s=schedule: ab.schedule_as_lr_scheduler(s, o, total_updates=T))
        pairs[name] = [trace(theirs), ours]
    example = huggingface_schedule.main()
    resumed = fit(8, resume=False) + fit(16, resume=True)
    sys.stdout.write(
        "\n" + json.dumps({"pairs": pairs, "example": example, "resumed": resumed}) + "\n"
    )
