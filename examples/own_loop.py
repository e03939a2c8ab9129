"""A loop of your own around a Training: records are values, leaving early is `break`."""

import torch
from torch import nn

import anybatch as ab


def main() -> None:
    """Train a small classifier until its loss is low, printing as it goes."""
    torch.manual_seed(0)
    inputs, labels = torch.randn(2000, 20), torch.randint(0, 2, (2000,))
    inputs[:, 0] += 3 * labels
    task = ab.Task(build_model=lambda: nn.Linear(20, 2), train=(inputs, labels), name="shifted")
    recipe = ab.Recipe(
        optimizer=ab.SGDSettings(lr=0.1, momentum=0.9),
        schedules=ab.Schedules(lr=ab.Warmup(duration=ab.epochs(1), into=ab.Cosine())),
        batch_size=32,
        duration=ab.epochs(5),
    )
    with ab.Training(task, recipe) as training:
        for record in training:
            print(f"update {record.update}: loss {record.loss:.4f}")
            if isinstance(record, ab.StepRecord) and record.loss < 0.15:
                break
        print(training.evaluate("validation"))


if __name__ == "__main__":
    main()
