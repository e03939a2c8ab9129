"""lr of each update inside of Lightning's Trainer, whole and resumed from its checkpoint."""

from __future__ import annotations

import json
import sys
from typing import Any

import lightning
import lightning_schedule
import torch
from torch.utils.data import DataLoader, TensorDataset

import anybatch as ab


class Sixteen(lightning_schedule.Classifier):
    """The example's classifier, on a schedule of sixteen updates whatever the Trainer's end."""

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.4)
        scheduler = ab.schedule_as_lr_scheduler(
            ab.Warmup(duration=ab.updates(4), into=ab.Cosine()), optimizer, total_updates=16
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def fit(max_epochs: int, checkpoint: str | None = None) -> list[float]:
    data = TensorDataset(torch.randn(64, 8), torch.randint(0, 2, (64,)))
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        max_epochs=max_epochs, accelerator="cpu", logger=False, enable_checkpointing=False, **quiet
    )
    model = Sixteen()
    trainer.fit(model, DataLoader(data, batch_size=8), ckpt_path=checkpoint)
    trainer.save_checkpoint("last.ckpt")
    return model.lrs


if __name__ == "__main__":
    example = lightning_schedule.main()
    resumed = fit(1) + fit(2, "last.ckpt")
    past_the_end = fit(3, "last.ckpt")
    sys.stdout.write(
        "\n"
        + json.dumps({"example": example, "resumed": resumed, "past the end": past_the_end})
        + "\n"
    )
