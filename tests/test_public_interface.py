"""What `import anybatch` offers, and what reading runs and asking for help must not import."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import anybatch
import anybatch.optim
from anybatch.measurement import Estimate, Measurement
from anybatch.recipe import Recipe, SGDSettings
from anybatch.recipe_file import load_recipe
from anybatch.records import EvalRecord
from anybatch.run import Run, Status
from anybatch.study import Study

HEAVY = ("torch", "numpy", "matplotlib", "PIL")
RECIPE = Recipe(optimizer=SGDSettings(lr=0.1))


def an_evaluation(metric: float) -> EvalRecord:
    return EvalRecord(
        update=1,
        examples=8,
        epoch=1.0,
        split="test",
        loss=0.1,
        metric=metric,
        metric_name="accuracy",
        seconds=1.0,
        evaluation_seconds=0.1,
    )


def assert_runs_without(forbidden: tuple[str, ...], code: str) -> None:
    """Run code in a new interpreter and look that it imported nothing forbidden."""
    look = f"import sys\nfound = {{*sys.modules}} & {{*{forbidden!r}}}\nassert not found, found\n"
    result = subprocess.run(
        [sys.executable, "-c", code + "\n" + look],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr


TABLES = (anybatch, anybatch.optim)


@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package in TABLES for name in package.__all__]
)
def test_every_public_name_can_be_used_and_lies_where_the_table_says(
    package: Any, name: str
) -> None:
    value = getattr(package, name)
    home = importlib.import_module(package._HOME_OF[name])
    assert value is getattr(home, name)
    assert name in home.__all__


@pytest.mark.parametrize("package", TABLES)
def test_type_checkers_see_what_the_lazy_table_holds(package: Any) -> None:
    tree = ast.parse(Path(package.__file__).read_text())
    block = next(
        node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name)
    )
    seen = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    assert seen == package._HOME_OF
    assert sum(len(node.names) for node in block.body if isinstance(node, ast.ImportFrom)) == len(
        seen
    )


def test_public_names_are_listed_and_unknown_ones_are_refused() -> None:
    assert sorted(anybatch.__all__) == anybatch.__all__
    assert set(anybatch.__all__) <= set(dir(anybatch))
    with pytest.raises(AttributeError, match="module 'anybatch' has no attribute 'trian'"):
        anybatch.trian  # noqa: B018


def test_no_public_name_is_a_module_of_the_package() -> None:
    package = Path(anybatch.__file__).parent
    modules = {path.stem for path in package.iterdir()}
    assert not modules & set(anybatch.__all__)


def test_nouns_are_imported_without_torch() -> None:
    nouns = [
        "controllers", "errors", "measurement", "progress", "recipe", "recipe_file",
        "recipe_mapping", "recipe_parts", "recipe_batch", "recipe_preconditioner", "recipe_checks",
        "recipe_gradient",
        "recipe_images", "recipe_optimizers", "records", "run", "schedules", "study", "durations",
        "schedule_parts", "plain_schedules", "stepped_schedules", "cyclic_schedules", "course",
        "preview", "drawing", "drawings.lr_range", "drawings.table", "drawings.plan", "plan",
    ]  # fmt: skip
    imports = "".join(f"import anybatch.{noun}\n" for noun in nouns)
    public = "InputError Patience Measurement Recipe load_recipe EvalRecord Run Study Cosine epochs"
    uses = "".join(f"anybatch.{name}\n" for name in public.split())
    assert_runs_without((*HEAVY, "rich", "tyro"), "import anybatch\n" + imports + uses)


def test_runs_studies_and_schedules_are_read_without_torch(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "study", {"a": RECIPE}, [0], {"name": "digits"})
    run = Run.create(study.trials()[0].path, study.trials()[0].recipe, {"name": "digits"})
    run.append(an_evaluation(0.9))
    run.write_status(Status(name="finished"))
    code = f"""
import anybatch as ab
run = ab.Run({str(run.path)!r})
assert run.verdict().startswith("finished; test accuracy 0.9000"), run.verdict()
assert run.recipe.batch_size == 128 and run.status.exit_code == 0 and list(run.steps()) == []
study = ab.Study({str(study.path)!r})
assert study.summaries()[0].mean == 0.9 and study.exit_code == 0 and study.to_dict()["runs"]
assert ab.load_recipe("mnist").schedules.lr.name == "one-cycle"
assert ab.Cosine()(1.0) == 0.0
"""
    assert_runs_without(HEAVY, code)


HELP = [
    ["--help"],
    ["train", "--help"],
    ["recipe", "show", "--help"],
    ["lr-range", "--help"],
    ["plan", "--help"],
    ["explain", "--help"],
    ["calibration", "--help"],
    ["throughput", "--help"],
    ["predict-scaling", "--help"],
    ["noise-scale", "--help"],
    ["loss-oscillation", "--help"],
    ["sharpness", "--help"],
    ["doctor", "--help"],
    ["study", "batch-size", "--help"],
    ["report", "--help"],
    ["compare", "--help"],
    ["recipe", "preview", "--help"],
    ["recipe", "list"],
    ["recipe", "show", "mnist"],
    ["recipe", "preview", "mnist", "--examples", "54000"],
    ["tasks"],
    ["--version"],
]


def test_help_recipes_and_the_list_of_tasks_import_neither_torch_nor_rich() -> None:
    calls = "".join(f"assert main({arguments!r}) == 0\n" for arguments in HELP)
    forbidden = ("torch", "matplotlib", "rich", "jinja2")
    assert_runs_without(forbidden, "from anybatch.cli import main\n" + calls)


def test_reports_and_comparisons_are_made_without_torch(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "study", {"a": RECIPE, "b": RECIPE}, [0, 1], {"name": "digits"})
    for trial in study.trials():
        run = Run.create(trial.path, trial.recipe, {"name": "digits"})
        run.append(an_evaluation(0.9 + 0.01 * trial.seed))
        run.write_status(Status(name="finished"))
    lr_range = Measurement(
        kind="lr-range",
        settings={},
        samples=dict.fromkeys(("stage", "repeat", "series", "lr", "loss"), (0.0, 0.5, 1.0)),
        estimates={"max_lr": Estimate(value=0.1, low=0.05, high=0.2)},
        seconds=1.0,
        examples=8,
    )
    run.add_measurement(lr_range)
    arms = [f"{study.path}:{arm}" for arm in ("a", "b")]
    calls = [
        ["report", str(study.path), "--out", str(tmp_path / "page.html")],
        ["report", str(run.path), "--out", str(tmp_path / "figures"), "--format", "svg"],
        ["compare", *arms],
        ["recipe", "preview", "digits", "--examples", "1293", "--out", str(tmp_path / "lr.svg")],
    ]
    lines = "".join(f"assert main({call!r}) == 0\n" for call in calls)
    assert_runs_without(("torch",), "from anybatch.cli import main\n" + lines)
    assert (tmp_path / "page.html").exists()
    assert list((tmp_path / "figures").glob("*.svg"))


@pytest.mark.parametrize("name", anybatch.__all__)
def test_every_public_name_is_documented_where_it_is_made(name: str) -> None:
    value = getattr(anybatch, name)
    text = inspect.getdoc(value)
    assert text, name
    assert not text.startswith(f"{name}("), name  # what dataclass writes by itself
    if inspect.isfunction(value):
        for parameter in inspect.signature(value).parameters:
            assert f"{parameter}:" in text or len(inspect.signature(value).parameters) == 1, name


def test_what_measures_draws_and_compares_is_public() -> None:
    new = {"measure_lr_range", "LRRangeSettings", "Measurement", "Estimate", "Finding",
           "write_report", "compare_runs", "ReduceOnPlateau"}  # fmt: skip
    assert new <= set(anybatch.__all__)


def test_the_module_is_the_program() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "anybatch", "recipe", "diff", "mnist", "mnist", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {"differences": []}


def test_every_module_says_what_it_is_and_what_is_public() -> None:
    package = Path(anybatch.__file__).parent
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        names = {
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        assert "__all__" in names or path.name in ("__init__.py", "__main__.py"), path


def test_the_recipe_shipped_for_digits_is_what_the_public_function_loads() -> None:
    assert anybatch.load_recipe("digits") == load_recipe("digits")
