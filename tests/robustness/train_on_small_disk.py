"""Runs the `anybatch` command where files may not grow beyond a limit, as on a disk that is full.

python train_on_small_disk.py BYTES FIRST_CHECKPOINT ARGUMENTS...

The limit holds from the beginning if FIRST_CHECKPOINT is 0, otherwise from the moment at which that
checkpoint is to be written (1 is the first one).
"""

from __future__ import annotations

import resource
import sys
from typing import Any

from anybatch.cli import main
from anybatch.training import loop


def limit_files(num_bytes: int) -> None:
    """Python ignores the signal of a file that grows too large, so writing raises an OSError."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))


def limit_from_checkpoint(num_bytes: int, first: int) -> None:
    """Set the limit when the checkpoint of that number is about to be written."""
    save_checkpoint, begun = loop.save_checkpoint, 0

    def save(*arguments: Any) -> None:
        nonlocal begun
        begun += 1
        if begun == first:
            limit_files(num_bytes)
        save_checkpoint(*arguments)

    loop.save_checkpoint = save  # type: ignore[assignment]


if __name__ == "__main__":
    size, first_checkpoint = int(sys.argv[1]), int(sys.argv[2])
    if first_checkpoint:
        limit_from_checkpoint(size, first_checkpoint)
    else:
        limit_files(size)
    sys.exit(main(sys.argv[3:]))
