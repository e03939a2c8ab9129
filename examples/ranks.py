"""The same training on one process and on several, to the same weights.

Run it as `python examples/ranks.py` and as `torchrun --nproc-per-node=2 examples/ranks.py`.
"""

import anybatch as ab


def main() -> None:
    """Train digits with a BatchNorm network and print a fingerprint of the weights."""
    task = ab.load_task("digits")
    recipe = ab.Recipe(
        optimizer=ab.SGDSettings(lr=0.05, momentum=0.9),
        model=ab.ModelSettings(name="resnet20", width=0.5),
        batch_size=64,
        ghost_batch_size=16,
        duration=ab.updates(20),
        compute=ab.ComputeSettings(precision="fp64", threads=1),
    )
    with ab.Training(task, recipe) as training:
        for _ in training:
            pass
        total = sum(float(weights.detach().abs().sum()) for weights in training.model.parameters())
        if training.world.is_first:
            print(f"{training.world.size} process(es): sum of |weights| = {total:.12f}")


if __name__ == "__main__":
    main()
