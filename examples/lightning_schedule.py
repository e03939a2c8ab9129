"""A schedule of anybatch inside of Lightning's Trainer.

Lightning steps a scheduler once an epoch unless it is told "interval": "step".
"""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import anybatch as ab


class Classifier(lightning.LightningModule):
    """A linear classifier that keeps the learning rate of each update."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)
        self.lrs: list[float] = []

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        """The loss of one batch."""
        self.lrs.append(self.optimizers().param_groups[0]["lr"])
        inputs, labels = batch
        return nn.functional.cross_entropy(self.layer(inputs), labels)

    def configure_optimizers(self) -> dict[str, object]:
        """The optimizer, and the schedule stepped once per update."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.4)
        scheduler = ab.schedule_as_lr_scheduler(
            ab.Warmup(duration=ab.updates(4), into=ab.Cosine()),
            optimizer,
            total_updates=self.trainer.estimated_stepping_batches,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def main() -> list[float]:
    """Train for two epochs of eight batches, and return the learning rates."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(64, 8), torch.randint(0, 2, (64,)))
    model = Classifier()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(data, batch_size=8))
    return model.lrs


if __name__ == "__main__":
    print("lr of each update:", *(f"{lr:.4f}" for lr in main()))
