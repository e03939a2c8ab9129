"""Run: a directory that holds one training, readable without torch.

    recipe.toml         the recipe as the user wrote it, where it came from a file
    recipe.json         the resolved recipe, every default written out
    task.json           how the task is made again
    environment.json    versions, hardware, threads, commit, command; a list, one entry a session
    steps.jsonl         StepRecords
    evals.jsonl         EvalRecords
    events.jsonl        EventRecords, once there is one
    checkpoints/        update-000000120.pt and latest.json, which names it with its SHA-256
    measurements/       one JSON file each, raw samples included
    plan.json           the plan that was made here, or that the run follows
    weights.pt          the final weights (averaged ones, where averaging is on)
    status.json         running, finished, target-missed, diverged, interrupted or failed, and why

Small files are replaced atomically; logs only grow, and a resumed training cuts them back to the
length that its checkpoint recorded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias, final

from anybatch.drawing import Line, axes_or_new, draw_lines, html_table
from anybatch.errors import ExitCode, InputError
from anybatch.measurement import Measurement
from anybatch.plan import PLAN_FILE, Plan, PlanOutcome
from anybatch.recipe import Recipe
from anybatch.recipe_file import read_recipe_file
from anybatch.recipe_mapping import recipe_from_mapping, recipe_to_mapping
from anybatch.records import EvalRecord, EventRecord, Record, StepRecord, from_json, plain, to_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "SCHEMA",
    "Run",
    "Status",
    "StatusName",
    "new_folder",
    "not_writable",
    "plan_outcome",
    "read_json",
    "require_new_folder",
    "write_atomically",
    "write_json",
]

SCHEMA = 1

StatusName: TypeAlias = Literal[
    "running", "finished", "target-missed", "diverged", "interrupted", "failed"
]

_EXIT_CODES: dict[str, ExitCode] = {
    "finished": ExitCode.OK,
    "target-missed": ExitCode.TARGET_MISSED,
    "diverged": ExitCode.DIVERGED,
    "interrupted": ExitCode.INTERRUPTED,
    "failed": ExitCode.BAD_INPUT,
}


_LOGS: dict[type[Record], str] = {
    StepRecord: "steps.jsonl",
    EvalRecord: "evals.jsonl",
    EventRecord: "events.jsonl",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """How a run stands, or ended.

    Attributes:
        name: the outcome.
        reason: one sentence.
        update: updates done.
        examples: examples seen.
        seconds: of training.
        signal: number of the signal that interrupted it.
        target: the target as text, if there was one.
        target_seconds: seconds of training to the target, once reached.
        target_update: updates to the target, once reached.
    """

    name: StatusName
    reason: str = ""
    update: int = 0
    examples: int = 0
    seconds: float = 0.0
    signal: int | None = None
    target: str | None = None
    target_seconds: float | None = None
    target_update: int | None = None

    @property
    def exit_code(self) -> int:
        """The command's exit code for this status; 128 + signal where a signal ended it."""
        return 128 + self.signal if self.signal else int(_EXIT_CODES.get(self.name, ExitCode.OK))


def plan_outcome(plan: Plan, status: Status) -> PlanOutcome | None:
    """What a run took beside what its plan foretold; None unless it came to an end of its own.

    Args:
        plan: that the run follows.
        status: of the run.
    """
    if status.name not in ("finished", "target-missed", "diverged"):
        return None
    reached = status.target_update is not None
    return PlanOutcome(
        seconds=float((status.target_seconds if reached else status.seconds) or 0.0),
        updates=int((status.target_update if reached else status.update) or 0),
        reached=reached,
        foretold_seconds=plan.predictions["seconds"],
        foretold_updates=plan.predictions["updates"],
    )


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that either the old or the new one is there, whatever happens between.

    Args:
        path: of the file.
        write: writes the content to the file object it is given.

    Raises:
        InputError: the disk is full or the place is not writable; the old file stays.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        cause = _system_error(error)
        if cause is None:
            raise
        raise not_writable(path, cause) from None


def _system_error(error: BaseException) -> OSError | None:
    """The OSError behind an error: torch.save turns that of a full disk into a RuntimeError."""
    found = error.__context__ if isinstance(error, RuntimeError) else error
    return found if isinstance(found, OSError) else None


def not_writable(path: Path, error: OSError) -> InputError:
    """The one line for a place that cannot be written."""
    return InputError(str(path), "must be writable", error.strerror or str(error))


def require_new_folder(path: Path) -> None:
    """Refuse a place for a new run that holds something already.

    Raises:
        InputError: it does.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        is_known = any((path / name).exists() for name in ("recipe.json", "study.json"))
        hint = f"--resume {path} continues it" if is_known else ""
        raise InputError("out", "must be a new or empty folder", str(path), hint=hint)


@contextmanager
def new_folder(path: Path) -> Iterator[None]:
    """A new folder (or an empty one) to be filled; left as it was if that fails.

    Args:
        path: of the folder; parents are made with it.

    Raises:
        InputError: it cannot be made or filled.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        for entry in path.iterdir() if path.is_dir() else ():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise not_writable(path, error) from None
        raise


@final
class Run:
    """A handle on a run's directory.

    Args:
        path: the directory; it must hold a run. `Run.create` makes a new one.

    Raises:
        InputError: there is no run at `path`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not (self.path / "recipe.json").is_file():
            raise InputError("run", "must be a folder with a recipe.json", str(path))

    @classmethod
    def create(cls, path: Path | str, recipe: Recipe, task: dict[str, Any]) -> Run:
        """Make a new run's directory.

        Args:
            path: a folder that does not exist or is empty.
            recipe: resolved recipe.
            task: how the task is made again, plain values.

        Raises:
            InputError: the folder holds something, or cannot be written.
        """
        path = Path(path)
        require_new_folder(path)
        with new_folder(path):
            (path / "checkpoints").mkdir()
            write_json(path / "task.json", {"schema": SCHEMA} | task)
            write_json(path / "status.json", _status_values(Status(name="running")))
            write_json(path / "recipe.json", recipe_to_mapping(recipe))  # last: makes it a run
        return cls(path)

    # --- what it was made from -------------------------------------------------------------

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return recipe_from_mapping(read_recipe_file(self.path / "recipe.json"))

    def replace_recipe(self, recipe: Recipe) -> None:
        """Write a changed recipe (only the duration may change, when a run is extended)."""
        write_json(self.path / "recipe.json", recipe_to_mapping(recipe))

    @property
    def task(self) -> dict[str, Any]:
        """How the task is made again."""
        return read_json(self.path / "task.json")

    def add_environment(self, environment: dict[str, Any]) -> None:
        """Append this session's versions, hardware and command to `environment.json`."""
        sessions = [*self.environments, environment]
        write_json(self.path / "environment.json", {"schema": SCHEMA, "sessions": sessions})

    @property
    def environments(self) -> list[dict[str, Any]]:
        """One entry for each session that trained this run, oldest first."""
        path = self.path / "environment.json"
        sessions = read_json(path).get("sessions") if path.exists() else []
        if not isinstance(sessions, list) or not all(isinstance(item, dict) for item in sessions):
            raise InputError(str(path), "must hold a list of sessions")
        return sessions

    # --- status ----------------------------------------------------------------------------

    def write_status(self, status: Status) -> None:
        """Replace `status.json`."""
        write_json(self.path / "status.json", _status_values(status))

    @property
    def status(self) -> Status:
        """How the run stands, or ended.

        Raises:
            InputError: `status.json` is damaged.
        """
        path = self.path / "status.json"
        values = read_json(path)
        values.pop("schema", None)
        try:
            return Status(**values)
        except TypeError as error:
            raise InputError(str(path), "must hold a run's status", str(error)) from None

    # --- logs ------------------------------------------------------------------------------

    def append(self, record: Record) -> None:
        """Add a record to its log, as a whole line."""
        path = self.log_path(type(record))
        try:
            with path.open("ab") as file:
                file.write(to_json(record).encode() + b"\n")
        except OSError as error:
            raise not_writable(path, error) from None

    def log_path(self, kind: type[Record]) -> Path:
        """The log that holds records of `kind`."""
        return self.path / _LOGS[kind]

    def log_lengths(self) -> dict[str, int]:
        """Bytes in each log, for a checkpoint to come back to."""
        paths = [self.path / name for name in _LOGS.values()]
        return {path.name: path.stat().st_size if path.exists() else 0 for path in paths}

    def check_logs(self, lengths: dict[str, int]) -> None:
        """Look whether each log has at least the length that a checkpoint recorded.

        Raises:
            InputError: a log is shorter, so lines were lost.
        """
        for name, size in self.log_lengths().items():
            if size < lengths[name]:
                rule = f"must hold at least {lengths[name]} bytes to be resumed"
                raise InputError(str(self.path / name), rule, size)

    def truncate_logs(self, lengths: dict[str, int]) -> None:
        """Cut each log back to the length that a checkpoint recorded; see `check_logs`."""
        for name, length in lengths.items():
            if (self.path / name).exists():
                os.truncate(self.path / name, length)

    def steps(self) -> Iterator[StepRecord]:
        """The step records, oldest first."""
        return self._read_log(StepRecord)

    def evals(self) -> Iterator[EvalRecord]:
        """The evaluation records, oldest first."""
        return self._read_log(EvalRecord)

    def events(self) -> Iterator[EventRecord]:
        """What controllers did, oldest first."""
        return self._read_log(EventRecord)

    def _read_log(self, kind: type[Record]) -> Iterator[Any]:
        path = self.log_path(kind)
        if not path.exists():
            return
        lines = path.read_bytes().split(b"\n")[:-1]  # a line without its end was cut off
        for number, line in enumerate(lines, start=1):
            try:
                yield from_json(line.decode(), kind)
            except (ValueError, TypeError, AttributeError) as error:
                thing = f"{path} line {number}"
                raise InputError(thing, f"must be a {kind.__name__}", str(error)) from None

    def last_eval(self, split: str) -> EvalRecord | None:
        """The latest evaluation of a split, or None."""
        found = None
        for record in self.evals():
            found = record if record.split == split else found
        return found

    # --- measurements ----------------------------------------------------------------------

    def add_measurement(self, measurement: Measurement, *, name: str | None = None) -> None:
        """Write a measurement to `measurements/NAME.json`, replacing one of the same name.

        Args:
            measurement: to keep.
            name: of the file; None: its kind.
        """
        folder = self.path / "measurements"
        folder.mkdir(exist_ok=True)
        values = {"schema": SCHEMA} | measurement.to_dict()
        write_json(folder / f"{name or measurement.kind}.json", values)

    def measurements(self) -> dict[str, Measurement]:
        """The measurements by name: their kind, unless they were given another."""
        paths = sorted((self.path / "measurements").glob("*.json"))
        return {path.stem: Measurement.from_dict(read_json(path)) for path in paths}

    @property
    def plan(self) -> Plan | None:
        """The plan that was made here, or that the run follows; None without one."""
        path = self.path / PLAN_FILE
        if not path.exists():
            return None
        try:
            plan = Plan.from_dict(read_json(path))
        except InputError as error:
            raise error.renamed(str(path)) from None
        return dataclasses.replace(plan, folder=str(self.path))

    def to_dict(self) -> dict[str, Any]:
        """Path, status and last evaluations as plain values, for programs."""
        evals = {split: self.last_eval(split) for split in ("validation", "test")}
        plain_evals = {k: dataclasses.asdict(v) for k, v in evals.items() if v is not None}
        status = dataclasses.asdict(self.status)
        values: dict[str, Any] = plain({"run": str(self.path), "status": status, **plain_evals})
        return values

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw training and validation loss against updates.

        Args:
            ax: of matplotlib, to draw on; None makes a new figure.
        """
        axes = axes_or_new(ax)
        steps = list(self.steps())
        evals = [record for record in self.evals() if record.split == "validation"]
        training = [record.loss for record in steps]
        validation = [record.loss for record in evals]
        lines = [
            Line(label="training", x=[record.update for record in steps], y=training),
            Line(label="validation", x=[record.update for record in evals], y=validation,
                 colour=1, style="dots"),
        ]  # fmt: skip
        draw_lines(axes, [line for line in lines if line.y], x_label="updates", y_label="loss")
        if steps or evals:
            axes.legend(frameon=False)
        return axes

    def _repr_html_(self) -> str:
        """The verdict and where the run is, for notebooks."""
        return html_table(self.path.name, {"run": str(self.path), "verdict": self.verdict()})

    def verdict(self) -> str:
        """One line: how it ended, with what accuracy, after how long."""
        status = self.status
        parts = [status.name + (f" ({status.reason})" if status.reason else "")]
        for split in ("validation", "test"):
            record = self.last_eval(split)
            if record is not None:
                parts.append(f"{split} {record.metric_name} {record.metric:.4f}")
        parts.append(f"{status.examples:,} examples in {status.seconds:.1f} s of training")
        return "; ".join(parts)


def _status_values(status: Status) -> dict[str, Any]:
    return {"schema": SCHEMA} | dataclasses.asdict(status)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Replace a JSON file atomically; numbers that are not finite are written as text."""
    text = json.dumps(plain(values), indent=1, allow_nan=False)
    write_atomically(path, lambda file: file.write(text.encode() + b"\n"))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: it is missing, not JSON, or not an object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(str(path), "must be a readable JSON file", str(error)) from None
    if not isinstance(values, dict):
        raise InputError(str(path), "must hold a JSON object")
    return values
