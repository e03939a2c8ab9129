"""The import arrows of docs/architecture.md hold, and breaking any of them is noticed."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "anybatch"

BROKEN_ARROWS = {
    "a noun reaches torch": ("schedules.py", "import torch"),
    "a noun reaches torch through another": ("run.py", "import anybatch.world"),
    "a noun reaches up": ("recipe.py", "import anybatch.run"),
    "world reaches data": ("world.py", "import anybatch.data.source"),
    "models reach data": ("models/mlp.py", "import anybatch.data.source"),
    "data reaches the task": ("data/resident.py", "import anybatch.task"),
    "optim reaches training": ("optim/clipping.py", "import anybatch.training.sampling"),
    "the task reaches training": ("task.py", "import anybatch.training.loop"),
    "training reaches studies": ("training/loop.py", "import anybatch.studies.run_study"),
    "studies reach commands": ("studies/run_study.py", "import anybatch.commands.train"),
    "commands reach the options": ("commands/tasks.py", "import anybatch.cli"),
    "measuring reaches reporting": ("measuring/lr_range.py", "import anybatch.reporting.page"),
    "measuring reaches commands": ("measuring/loops.py", "import anybatch.commands.lr_range"),
    "reporting reaches training": ("reporting/page.py", "import anybatch.training.loop"),
    "reporting reaches torch": ("reporting/figures.py", "import torch"),
    "a command about runs reaches torch": ("commands/compare.py", "import anybatch.world"),
    "drawing reaches torch": ("drawing.py", "import torch"),
    "drawing reaches numpy": ("drawings/lr_range.py", "import numpy"),
    "a plan reaches planning": ("plan.py", "import anybatch.planning.compose"),
    "arithmetic of plans reaches torch": ("planning/arithmetic/decision.py", "import torch"),
    "measuring reaches planning": ("measuring/noise_scale.py", "import anybatch.planning.ledger"),
    "curvature reaches the task": ("curvature/hvp.py", "import anybatch.task"),
    "a noun reaches reporting": ("measurement.py", "import anybatch.reporting.page"),
    "a noun reaches measuring": ("run.py", "import anybatch.measuring.lr_range"),
}


def lint_imports(source: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    command += ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(source), "NO_COLOR": "1"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=source, timeout=120
    )


def test_every_import_runs_one_way() -> None:
    result = lint_imports(ROOT / "src")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("arrow", BROKEN_ARROWS)
def test_a_broken_arrow_is_noticed(arrow: str, tmp_path: Path) -> None:
    file, statement = BROKEN_ARROWS[arrow]
    copy = tmp_path / "anybatch"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / file).open("a") as module:
        module.write(f"\n{statement}\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "BROKEN" in result.stdout


def test_a_new_room_must_be_placed(tmp_path: Path) -> None:
    copy = tmp_path / "anybatch"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "utils.py").write_text('"""A drawer."""\n')
    assert lint_imports(tmp_path).returncode == 1


def modules_that_mention(name: str) -> set[str]:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            imported = []
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Attribute):
                imported = [ast.unparse(node)]
            if any(text == name or text.startswith(name + ".") for text in imported):
                found.add(path.relative_to(PACKAGE).as_posix())
    return found


def test_only_world_calls_torch_distributed() -> None:
    assert modules_that_mention("torch.distributed") == {"world.py"}


def test_nothing_is_called_utils() -> None:
    assert not [path for path in PACKAGE.rglob("*") if "util" in path.stem]
