"""What every rank runs: a plan of a tiny task, into a file of its own.

python -m torch.distributed.run --nproc-per-node=N plan_on_ranks.py FOLDER
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import exact_cases as cases
import torch

from anybatch.errors import InputError
from anybatch.planning import compose, procedure, stages
from anybatch.planning.continuing import begin_planned
from anybatch.planning.procedure import make_plan
from anybatch.recipe import Recipe, SGDSettings
from anybatch.run import Run
from anybatch.schedules import epochs, examples
from anybatch.task import Task
from anybatch.training.loop import create_run, train_to_end
from anybatch.training.training import Training

BUDGET = stages.Budget(
    procedure="full", throughput=0.1, lr_range=0.1, pilot=0.1, noise=0.05, branches=0.6
)


def task() -> Task:
    inputs, labels = cases.examples_of((6,), 256, seed=1)
    return Task(
        build_model=lambda: torch.nn.Linear(6, int(labels.max()) + 1),
        train=(inputs.float(), labels),
        validation=(inputs[:100].float(), labels[:100]),
    )


def main(folder: Path) -> None:
    procedure.budget_of = lambda *given: BUDGET  # type: ignore[assignment]
    procedure.ramp_and_probe_updates = lambda *given: (24, 12)  # type: ignore[assignment]
    compose._NUM_DRAWS = 100
    recipe = Recipe(optimizer=SGDSettings(lr=0.05, momentum=0.9), batch_size=32, duration=epochs(3))
    rank = os.environ["RANK"]
    plan = make_plan(task(), recipe, target="loss<=0.001", out=folder / "plan", progress=False)
    (folder / f"plan-{rank}.json").write_text(json.dumps(plan.to_dict(), allow_nan=False))
    try:
        make_plan(task(), recipe, target="loss<=0.001", out=folder / "plan", progress=False)
    except InputError as error:
        (folder / f"refused-{rank}.txt").write_text(str(error))
    total = int(plan.pilot["examples"]) + 5 * plan.batch_size
    own = dataclasses.replace(plan.recipe, duration=examples(total))
    with Training(task(), own) as training:
        run = create_run(training, folder / "run")
        begin_planned(training, run, Run(folder / "plan"), plan)
        begun = training.updates
        train_to_end(training, run, progress=False)
        weights = [float(p.sum()) for p in training.model.parameters()]
    values = {"begun": begun, "weights": weights}
    (folder / f"run-{rank}.json").write_text(json.dumps(values))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    cases.leave()
