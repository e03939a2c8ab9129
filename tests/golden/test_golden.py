"""The first 40 updates on the digits give the losses that they gave when this was written.

A change here is a change of what every run computes: of order, initial weights, loss, optimizer
or schedule. If it is meant, write the file anew with ANYBATCH_UPDATE_GOLDEN=1 and say why in the
commit.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from anybatch.recipe import RecordSettings, Stopping
from anybatch.recipe_file import load_recipe
from anybatch.records import TIME_FIELDS, EvalRecord, StepRecord
from anybatch.schedules import updates
from anybatch.task import load_task
from anybatch.training.training import Training

PATH = Path(__file__).parent / "digits.json"


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def digits_of_forty_updates() -> dict[str, list[float]]:
    recipe = dataclasses.replace(
        load_recipe("digits"),
        duration=updates(40),
        records=RecordSettings(log_every=1),
        stopping=Stopping(evaluate_every=updates(20)),
    )
    with Training(load_task("digits"), recipe) as training:
        records = list(training)
    steps = [record for record in records if isinstance(record, StepRecord)]
    evals = [record for record in records if isinstance(record, EvalRecord)]
    return {
        "loss": [record.loss for record in steps],
        "lr": [record.lr for record in steps],
        "examples": [record.examples for record in steps],
        "evaluation_loss": [record.loss for record in evals],
        "evaluation_metric": [record.metric for record in evals],
    }


def test_forty_updates_of_the_digits_are_as_they_were(one_thread: None) -> None:
    assert not TIME_FIELDS & {"loss", "lr", "examples"}
    found = digits_of_forty_updates()
    if os.environ.get("ANYBATCH_UPDATE_GOLDEN"):
        PATH.write_text(json.dumps(found, indent=1) + "\n")
        pytest.skip(f"wrote {PATH.name}")
    expected = json.loads(PATH.read_text())
    assert found.keys() == expected.keys()
    assert found["examples"] == expected["examples"]
    assert found["lr"] == pytest.approx(expected["lr"], rel=1e-12)
    for name in ("loss", "evaluation_loss"):  # CPUs and versions add in another order
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name
    assert found["evaluation_metric"] == pytest.approx(expected["evaluation_metric"], abs=0.015)
