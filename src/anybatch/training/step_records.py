"""Step records: what has happened since the last record, told when one is due."""

from __future__ import annotations

from typing import Any, final

from anybatch.records import EventRecord, Record, StepRecord
from anybatch.training.feed import Feed
from anybatch.training.judge import divergence
from anybatch.training.outcome import Outcome
from anybatch.training.step import Step
from anybatch.training.window import LossWindow
from anybatch.world import World

__all__ = ["StepRecords"]


@final
class StepRecords:
    """Losses and seconds since the last step record, and the records that tell of them.

    Args:
        step: whose losses, norms and inversions are told.
        feed: has the position.
        world: ranks that train together.

    Attributes:
        window_seconds: of training since the last record.
    """

    def __init__(self, step: Step, feed: Feed, world: World) -> None:
        self._step, self._feed, self._world = step, feed, world
        self._window = LossWindow(world.device)
        self.window_seconds = 0.0

    def append(self, num_examples: int) -> None:
        """Note the losses of an update, before the position moves on.

        Args:
            num_examples: of its global batch.
        """
        position = (self._feed.epoch, self._feed.offset)
        self._window.append(self._step.losses, num_examples, position)

    def next_record(self, seconds: float) -> tuple[StepRecord, Outcome | None]:
        """The record of the updates since the last one, and the end where they have diverged.

        Args:
            seconds: of training so far.

        Raises:
            InputError: a loss is not finite because the data are not.

        Collectives:
            One all-reduce of a number per update, and two gathers while ranks update on their own;
            every rank must call.
        """
        step, feed = self._step, self._feed
        current, preconditioning = step.hyperparameters.current(), step.preconditioning
        spent, self.window_seconds = self.window_seconds, 0.0
        count, updates = self._window.num_examples, len(self._window)
        loss, bad = self._window.reduce(self._world)
        ended = None
        if bad is not None:
            feed.refuse_bad_data(*bad.position, bad.num_examples)
            update = step.updates - updates + bad.number
            ended = divergence("training", update, current["lr"])
        norm, blocks = step.transforms.norm, step.block_norms
        told: dict[str, Any] = {} if preconditioning is None else preconditioning.recorded()
        record = StepRecord(
            update=step.updates,
            examples=feed.examples,
            epoch=feed.epochs,
            loss=loss,
            batch_size=feed.last_size,
            lr=current["lr"],
            momentum=current["momentum"],
            weight_decay=current["weight_decay"],
            gradient_norm=self._over_ranks(None if norm is None else float(norm)),
            clipped_share=self._over_ranks(step.transforms.clipped_share()),
            block_gradient_norm=None if blocks is None else float(blocks.mean),
            squared_block_gradient_norm=None if blocks is None else float(blocks.mean_squared),
            seconds=seconds,
            examples_per_second=count / max(spent, 1e-9),
            **told,
        )
        return record, ended

    def _over_ranks(self, value: float | None) -> float | None:
        """The mean over ranks of what each has of its own while they update on their own."""
        if value is None or not self._step.is_local:
            return value
        return sum(self._world.all_values(value)) / self._world.size

    def inversion_events(self) -> list[Record]:
        """What the preconditioner's inversions had to resort to since the last record."""
        preconditioning = self._step.preconditioning
        events = {} if preconditioning is None else preconditioning.new_events()
        if not events:
            return []
        listed = ", ".join(f"{what} ({count})" for what, count in sorted(events.items())[:3])
        more = f" and {len(events) - 3} more" if len(events) > 3 else ""
        return [
            EventRecord(
                update=self._step.updates,
                examples=self._feed.examples,
                epoch=self._feed.epochs,
                name="inversion-failed",
                sentence=f"K-FAC did not go the ordinary way: {listed}{more}",
                values={what: float(count) for what, count in events.items()},
            )
        ]

    def window_state(self) -> dict[str, Any]:
        """This rank's losses since the last record."""
        return self._window.state_dict()

    def load_state(self, windows: list[dict[str, Any]], window_seconds: float) -> None:
        """Put back losses and seconds since the last record.

        Args:
            windows: `window_state` of every rank that there was, in order.
            window_seconds: of the training that was saved.
        """
        self._window.load_state_dict(windows, self._world)
        self.window_seconds = window_seconds
