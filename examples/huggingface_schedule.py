"""A schedule of anybatch inside of Hugging Face's Trainer.

`Trainer(optimizers=(optimizer, scheduler))` steps the scheduler once per update, also when it
accumulates gradients, and saves it with its checkpoints.
"""

import tempfile

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import anybatch as ab


class Classifier(nn.Module):
    """A linear classifier with the interface that the Trainer expects."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Loss and outputs of a batch."""
        outputs = self.layer(inputs)
        return {"loss": nn.functional.cross_entropy(outputs, labels), "logits": outputs}


class Keep(TrainerCallback):
    """Keeps the learning rate of each update."""

    def __init__(self) -> None:
        self.lrs: list[float] = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **others) -> None:
        """Called by the Trainer just before an update."""
        self.lrs.append(optimizer.param_groups[0]["lr"])


def main() -> list[float]:
    """Train for two epochs of eight updates, and return the learning rates."""
    torch.manual_seed(0)
    data = [{"inputs": torch.randn(8), "labels": torch.tensor(n % 2)} for n in range(64)]
    model, keep = Classifier(), Keep()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    scheduler = ab.schedule_as_lr_scheduler(
        ab.Warmup(duration=ab.updates(4), into=ab.Cosine()), optimizer, total_updates=16
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=2,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = Trainer(
            model, arguments, train_dataset=data, optimizers=(optimizer, scheduler),
            callbacks=[keep],
        )  # fmt: skip
        trainer.train()
    return keep.lrs


if __name__ == "__main__":
    print("lr of each update:", *(f"{lr:.4f}" for lr in main()))
