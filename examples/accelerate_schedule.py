"""A schedule of anybatch in a loop with Accelerate, right on any number of processes.

A scheduler given to `prepare` is stepped `num_processes` times per update unless the Accelerator
has `split_batches=True`. Here it stays outside of `prepare` and is stepped once per update.
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import anybatch as ab


def main() -> list[float]:
    """Train for two epochs of eight updates, and return the learning rates."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    data = TensorDataset(torch.randn(64, 8), torch.randint(0, 2, (64,)))
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, batch_size=4))
    updates_per_epoch = len(loader) // 2  # of all processes together: the loader is sharded now
    scheduler = ab.schedule_as_lr_scheduler(
        ab.Warmup(duration=ab.epochs(0.5), into=ab.Cosine()),
        optimizer.optimizer,
        total_updates=2 * updates_per_epoch,
        updates_per_epoch=updates_per_epoch,
    )
    accelerator.register_for_checkpointing(scheduler)  # saved, and outside of prepare
    lrs = []
    for _ in range(2):
        for inputs, labels in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(inputs), labels)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    lrs.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                if accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped:
                    scheduler.step()
                optimizer.zero_grad()
    return lrs


if __name__ == "__main__":
    print("lr of each update:", *(f"{lr:.4f}" for lr in main()))
