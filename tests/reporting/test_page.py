"""The report's page: its numbers are the runs', it is honest about partial runs, and it is safe."""

from __future__ import annotations

import html
import json
import math
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from report_cases import METRIC, RECIPE, evaluation, lr_range, make_run, step

from anybatch.cli import main
from anybatch.errors import InputError
from anybatch.recipe import SGDSettings, Stopping, Target
from anybatch.records import EventRecord, to_json
from anybatch.reporting.page import write_report
from anybatch.run import Run, Status
from anybatch.study import Study


def text_of(runs: list[Any], folder: Path, **options: Any) -> str:
    return write_report(runs, folder / "page.html", **options).read_text()


def words_of(page: str) -> str:
    """The page's text without tags, scripts and styles."""
    page = re.sub(r"<(script|style|svg).*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def frames_of(page: str) -> dict[str, Any]:
    found = re.search(r'id="frames">(.*?)</script>', page, flags=re.DOTALL)
    assert found
    return json.loads(found.group(1))


# --- its numbers are the runs' -------------------------------------------------------------------


def test_points_of_the_page_are_the_records(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    page = text_of([run], tmp_path)
    frames = frames_of(page)
    training, validation = frames["loss-updates"][0]["series"]
    assert training["x"] == [record.update for record in run.steps()]
    assert training["y"] == [record.loss for record in run.steps()]
    evals = [record for record in run.evals() if record.split == "validation"]
    assert validation["y"] == [record.loss for record in evals]
    assert frames["metric-seconds"][0]["series"][0]["x"] == [record.seconds for record in evals]
    assert frames["metric-seconds"][0]["series"][0]["y"] == [record.metric for record in evals]
    assert frames["lr-examples"][0]["series"][0]["x"] == [r.examples for r in run.steps()]
    assert frames["lr-examples"][0]["series"][0]["y"] == [record.lr for record in run.steps()]


def test_points_are_drawn_where_the_frames_say(tmp_path: Path) -> None:
    """The pointer's arithmetic, on the path that matplotlib has drawn."""
    page = text_of([make_run(tmp_path / "run")], tmp_path)
    frame = frames_of(page)["lr-updates"][0]
    left, top, right, bottom = frame["box"]
    (series,) = frame["series"]
    ends = [(frame[axis]["low"], frame[axis]["high"]) for axis in "xy"]
    (x0, x1), (y0, y1) = ends
    x = [left + (value - x0) / (x1 - x0) * (right - left) for value in series["x"]]
    y = [bottom - (value - y0) / (y1 - y0) * (bottom - top) for value in series["y"]]
    svg = re.search(r'data-picture="lr-updates">(.*?)</svg>', page, flags=re.DOTALL)
    assert svg
    paths = re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--series-0\)', svg.group(1))
    numbers = [float(number) for number in re.findall(r"[-\d.]+", max(paths, key=len))]
    assert numbers == pytest.approx([v for pair in zip(x, y, strict=True) for v in pair], abs=0.01)


def test_words_and_tables_hold_the_runs_numbers(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "study", {"sgd": RECIPE}, [0, 1, 2], {"name": "digits"})
    for trial, metric in zip(study.trials(), (0.90, 0.92, 0.97), strict=True):
        make_run(trial.path, seed=trial.seed, metric=metric)
    words = words_of(text_of([study], tmp_path))
    assert "study 3 of 3 test accuracy 3 0.9300 0.0361 0.9000 to 0.9700 0 - 5 s" in words
    assert "study seed 2 finished 2 accuracy 0.9200 accuracy 0.9700 20 640 5 s -" in words
    assert "digits: 3 runs" in words


def test_arms_that_differ_in_a_recipe_are_named_with_what_differs(tmp_path: Path) -> None:
    arms = {"low": RECIPE, "high": RECIPE.__class__(optimizer=RECIPE.optimizer, batch_size=256)}
    study = Study.create(tmp_path / "study", arms, [0, 1], {"name": "digits"})
    for trial in study.trials()[:3]:
        make_run(trial.path, seed=trial.seed, recipe=trial.recipe, metric=0.9)
    words = words_of(text_of([study], tmp_path))
    assert "field low high batch_size 128 256" in words
    assert "high 1 of 2" in words
    assert "the whole recipe, every default written out" in words


def test_loose_runs_that_differ_only_in_the_seed_are_one_row(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"r{seed}", seed=seed, metric=0.9 + seed / 100) for seed in (0, 2)]
    words = words_of(text_of(runs, tmp_path))
    assert "r0 and 1 more 2 of 2 test accuracy 2 0.9100 0.0141" in words
    unnamed = [make_run(tmp_path / f"u{seed}", seed=seed, task={}) for seed in (0, 1)]
    assert "and 1 more" not in words_of(text_of(unnamed, tmp_path))


def test_the_verdict_says_by_how_much_a_target_was_missed(tmp_path: Path) -> None:
    recipe = RECIPE.__class__(
        optimizer=RECIPE.optimizer, stopping=Stopping(target=Target.parse("accuracy>=0.99"))
    )
    status = Status(name="target-missed", update=20, seconds=5.0, target="accuracy >= 0.99")
    run = make_run(tmp_path / "missed", recipe=recipe, status=status)
    words = words_of(text_of([run], tmp_path))
    assert "was not reached: the best was 0.85, 0.14 short of it." in words
    reached = Status(name="finished", target="accuracy >= 0.8", target_seconds=2.5, target_update=9)
    run = make_run(tmp_path / "reached", recipe=recipe, status=reached)
    words = words_of(text_of([run], tmp_path))
    assert "on validation was reached at update 9, after 2.5 s." in words


def test_a_target_to_fall_below_is_missed_from_above(tmp_path: Path) -> None:
    status = Status(name="target-missed", update=20, target="loss <= 0.25")
    run = make_run(tmp_path / "run", status=status)
    run.append(evaluation(30, loss=0.75))
    assert "the best was 0.5, 0.25 short" in words_of(text_of([run], tmp_path))


def test_thousands_of_records_are_thinned_with_every_peak_and_say_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", updates=0)
    for update in range(1, 3001):
        run.append(step(update, loss=7.5 if update == 1234 else 1.0, lr=0.1))
    page = text_of([run], tmp_path)
    series = frames_of(page)["loss-updates"][0]["series"][0]
    assert len(series["x"]) <= 500
    assert (1234, 7.5) in zip(series["x"], series["y"], strict=True)
    assert (series["x"][0], series["x"][-1]) == (1, 3000)
    assert "3,000 records are drawn as" in words_of(page)
    assert "learning rate 0.1 throughout" in words_of(page)


# --- measurements --------------------------------------------------------------------------------


def test_an_lr_range_has_its_picture_estimates_and_findings(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "lr", RECIPE, {"name": "digits"})
    run.add_measurement(lr_range())
    page = text_of([run], tmp_path)
    words = words_of(page)
    assert "digits: lr-range" in words
    assert "noisy the loss jumps use --repeats 5" in words
    assert "base_lr 0.01 lr 0.005 to 0.02 (95 %)" in words
    assert "edge not known - never diverged" in words
    assert "Curves" not in words
    frame = frames_of(page)["measurement-0"][0]
    assert frame["x"]["log"]
    fitted, ramp = frame["series"]
    assert fitted["label"] == "fitted"
    assert ramp["x"] == pytest.approx(lr_range().samples["lr"][:40])
    assert ramp["y"][-1] == "nan"


@pytest.mark.parametrize("num_updates", [1, 2, 3])
def test_a_short_lr_range_is_drawn(tmp_path: Path, num_updates: int) -> None:
    run = Run.create(tmp_path / "lr", RECIPE, {"name": "digits"})
    run.add_measurement(lr_range(num_updates, estimates={}, findings=(), fitted={}))
    assert "measurement-0" in frames_of(text_of([run], tmp_path))


def test_a_measurement_of_another_kind_shows_its_estimates(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.add_measurement(lr_range(kind="something-else"))
    page = text_of([run], tmp_path)
    assert "something-else: estimates" in words_of(page)


# --- honest about what is not there --------------------------------------------------------------

STATUSES = ["running", "finished", "target-missed", "diverged", "interrupted", "failed"]
OTHERS = [("diverged", "bad"), ("running", "one")]


@pytest.mark.parametrize(("name", "records"), [*((name, "none") for name in STATUSES), *OTHERS])
def test_every_outcome_has_its_page(tmp_path: Path, name: Any, records: str) -> None:
    run = Run.create(tmp_path / "run", RECIPE, {})
    if records == "bad":
        for update in (1, 2):
            run.append(step(update, loss=math.nan, lr=math.inf, gradient_norm=math.nan))
            run.append(evaluation(update, loss=math.inf, metric=math.nan))
    if records == "one":
        run.append(step(1, gradient_norm=0.0, seconds=0.0))
    reason = "because of something" if name != "finished" else ""
    run.write_status(Status(name=name, reason=reason, update=1, target="accuracy >= 0.9"))
    words = words_of(text_of([run], tmp_path))
    told = {"running": "Still running, or killed", "target-missed": "without reaching the target"}
    assert told.get(name, name.capitalize()) in words
    assert "anybatch.fit(task, anybatch.load_recipe(" in words
    assert write_report([run], tmp_path / "page.md", format="md").exists()


def test_events_are_listed_and_marked_on_the_learning_rate(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    sentence = "lr 0.1 -> 0.01: validation loss has not improved"
    event = EventRecord(update=10, examples=320, epoch=1.0, name="lr-reduced", sentence=sentence,
                        values={"lr": 0.01})  # fmt: skip
    run.append(event)
    words = words_of(text_of([run], tmp_path))
    assert f"update 10: {sentence}" in words
    assert "1 event is marked by dotted lines." in words


def with_refreshes(run: Run, saved: int) -> Run:
    """The run's records with what a preconditioner of four factors tells."""
    records = [
        replace(record, damping=1e-3 * (1 + 9 / record.update), refreshes=4 * record.update - saved,
                refreshes_saved=saved, inversions=4 + record.update // 10,
                inversions_saved=4 * record.update - 4 - record.update // 10)
        for record in run.steps()
    ]  # fmt: skip
    (run.path / "steps.jsonl").write_text("".join(f"{to_json(record)}\n" for record in records))
    return run


def test_a_preconditioner_has_its_damping_refreshes_and_what_they_saved(tmp_path: Path) -> None:
    run = with_refreshes(make_run(tmp_path / "run"), saved=2)
    page = text_of([run], tmp_path)
    frames = frames_of(page)
    (damping,) = frames["damping-updates"][0]["series"]
    assert damping["y"] == [record.damping for record in run.steps()]
    measured, inverted = frames["refreshes-updates"][0]["series"]
    assert measured["y"] == [4 * update - 2 for update in range(1, 21)]
    assert inverted["y"] == [4 + update // 10 for update in range(1, 21)]
    words = words_of(page)
    assert "statistics measured: from 2 to 78. inverses made: from 4 to 6." in words
    assert "Of 80 measurements and inversions, all factors in every update, 2 and 74 were" in words


def test_refreshes_of_several_runs_are_side_by_side(tmp_path: Path) -> None:
    run = with_refreshes(make_run(tmp_path / "run"), saved=2)
    other = make_run(tmp_path / "other", recipe=replace(RECIPE, optimizer=SGDSettings(lr=0.2)))
    page = text_of([run, other], tmp_path)
    for name in ("refreshes", "inversions"):
        (series,) = frames_of(page)[f"{name}-updates"][0]["series"]
        assert series["y"] == [getattr(record, name) for record in run.steps()]
    assert words_of(page).count("run: Of 80 measurements") == 6  # two panels on three axes
    plain = frames_of(text_of([other], tmp_path))
    assert not any(name.startswith(("refreshes", "inversions", "damping")) for name in plain)


def test_a_study_that_was_not_begun_has_a_page(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "study", {"a": RECIPE, "b": RECIPE}, [0], {"name": "digits"})
    words = words_of(text_of([study], tmp_path))
    assert "a: not begun." in words.replace(" :", ":")


def test_what_cannot_be_reported_is_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    with (run.path / "steps.jsonl").open("a") as log:
        log.write("{broken\n")
    (tmp_path / "empty").mkdir()
    cases = {
        (str(run.path),): "steps.jsonl line 21 must be a StepRecord",
        (str(tmp_path / "empty"),): "run must be a folder with a run, a study",
        (str(tmp_path / "no"),): "run must be a folder with a run, a study",
        (str(run.path), str(run.path)): "",
    }
    for arguments, said in cases.items():
        assert main(["report", *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert not (run.path / "report.html").exists()


def test_a_run_given_twice_and_bad_places_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(InputError, match="must be given once"):
        write_report([run, run.path], tmp_path / "page.html")
    with pytest.raises(InputError, match="must be a file"):
        write_report([run], tmp_path)
    with pytest.raises(InputError, match="must lie in a folder that exists"):
        write_report([run], tmp_path / "no" / "page.html")
    with pytest.raises(InputError, match="must be given"):
        write_report([])
    with pytest.raises(InputError, match="format must be one of"):
        write_report([run], format="pdf")  # type: ignore[arg-type]


# --- safe, self-contained, the same each time ----------------------------------------------------

NASTY = "<script>alert(1)</script>\"'$x^{$ {{ 7*7 }} --> | `a` 数"


def nasty_run(path: Path) -> Run:
    task = {"name": NASTY, "folder": NASTY, "metric": METRIC}
    recipe = RECIPE.__class__(optimizer=RECIPE.optimizer, description=NASTY)
    status = Status(name="failed", reason=NASTY, target=NASTY)
    run = make_run(path, task=task, recipe=recipe, status=status)
    run.append(evaluation(30, metric_name=NASTY))
    run.append(EventRecord(update=1, examples=1, epoch=0.1, name=NASTY, sentence=NASTY, values={}))
    run.add_environment({"cpu": NASTY, "command": ["python", NASTY]})
    finding = {"name": NASTY, "sentence": NASTY, "advice": NASTY}
    measurement = lr_range().to_dict() | {"findings": [finding], "settings": {NASTY: NASTY}}
    run.add_measurement(lr_range().from_dict(measurement))
    return run


class Tags(HTMLParser):
    """Collects tags and what refers to something else."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts = 0
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        assert not [name for name, _ in attributes if name.startswith("on")]
        own = ("href", "xlink:href", "src", "srcset", "data", "action", "poster")
        self.references += [value or "" for name, value in attributes if name in own]


def test_whatever_users_wrote_is_text(tmp_path: Path) -> None:
    runs = [nasty_run(tmp_path / "<b>one&two"), make_run(tmp_path / "$a^")]
    page = text_of(runs, tmp_path, title=NASTY)
    assert page.count("<script") == 2  # the data and the pointer
    assert "alert(1)</script>" not in page
    assert "<b>one" not in page
    assert words_of(page).count(NASTY) >= 8
    tags = Tags()
    tags.feed(page)
    assert tags.scripts == 2
    markdown = write_report(runs, tmp_path / "page.md", format="md", title=NASTY).read_text()
    outside = "\n".join(line for line in markdown.splitlines() if not line.startswith("    "))
    assert not re.search(r"(?<!\\)<script", outside)
    assert write_report(runs, tmp_path / "figures", format="png").is_dir()


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.add_measurement(lr_range())
    page = text_of([run], tmp_path)
    assert "http" not in page
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    tags = Tags()
    tags.feed(page)
    assert {reference[:1] for reference in tags.references} == {"#", "d"}  # d: an empty icon
    assert [r for r in tags.references if r.startswith("d")] == ["data:,"]


def test_ids_are_unique_and_the_page_is_the_same_each_time(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.add_measurement(lr_range())
    page = text_of([run], tmp_path)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page))
    assert {one or other for one, other in used} <= set(ids)
    assert text_of([run], tmp_path) == page


def test_a_style_of_the_users_changes_nothing(tmp_path: Path) -> None:
    import matplotlib

    run = make_run(tmp_path / "run")
    page = text_of([run], tmp_path)
    with matplotlib.rc_context({"svg.fonttype": "path", "font.size": 30, "axes.grid": False}):
        assert text_of([run], tmp_path) == page


# --- commands, places, formats -------------------------------------------------------------------


def test_commands_repeat_the_run_and_are_quoted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a run", task={"name": "digits", "data": "/my data"})
    run.add_environment({"command": ["/x/bin/anybatch", "train", "digits", "--set", "a='b c'"]})
    found = re.findall(r"<pre>(anybatch .*?)</pre>", text_of([run], tmp_path))
    typed = [shlex.split(html.unescape(command)) for command in found]
    recipe = str((run.path / "recipe.json").resolve())
    assert ["anybatch", "train", "digits", "--set", "a='b c'"] in typed
    assert typed[-1] == ["anybatch", "train", "digits", "--recipe", recipe, "--data", "/my data"]


def test_sessions_that_differ_are_told_apart(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.add_environment({"python": "3.12.1", "torch": "2.10", "threads": 1})
    words = words_of(text_of([run], tmp_path))
    assert "session torch run, session 1 2.9 run, session 2 2.10" in words
    assert "python 3.12.1 threads 1" in words


def test_default_places_and_formats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two", seed=1)
    monkeypatch.chdir(tmp_path)
    assert main(["report", "one"]) == 0
    assert capsys.readouterr().out == "one/report.html\n"
    assert (one.path / "report.html").exists()
    assert main(["report", "one", str(two.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "report": "report.html", "format": "html", "files": ["report.html"],
    }  # fmt: skip
    assert main(["report", ".", "--format", "md"]) == 0  # a folder of runs
    markdown = (tmp_path / "report.md").read_text()
    links = re.findall(r"!\[.*?\]\((.*?)\)", markdown)
    assert "report-figures/training-loss-updates.svg" in links
    assert all((tmp_path / link).read_text().startswith("<?xml") for link in links)
    assert "| one and 1 more | 2 of 2 | test accuracy | 2 |" in markdown
    assert main(["report", "two", "--format", "png", "--out", "pictures"]) == 0
    pictures = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert pictures == ["loss-updates.png", "lr-updates.png", "metric-updates.png"]
    assert (tmp_path / "pictures" / pictures[0]).read_bytes().startswith(b"\x89PNG")


def test_the_templates_are_part_of_the_package() -> None:
    for name in ("template.html", "template.md"):
        assert "{{ title" in (files("anybatch") / "reporting" / name).read_text("utf-8")


def test_reports_and_comparisons_leave_torch_out(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two", seed=1)
    one.add_measurement(lr_range())
    code = f"""
import sys
from anybatch.cli import main
runs = [{str(one.path)!r}, {str(two.path)!r}]
assert main(["report", *runs, "--out", {str(tmp_path / "page.html")!r}]) == 0
assert main(["compare", *runs]) == 0
assert "torch" not in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
