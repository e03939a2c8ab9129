"""`anybatch plan`, `explain` and `train --plan`: what they print, keep and refuse."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from anybatch.cli import main
from anybatch.plan import PLAN_FILE, Plan
from anybatch.planning import compose, procedure, stages
from anybatch.planning.ledger import read_ledger
from anybatch.run import Run

QUICK = stages.Budget(
    procedure="short", throughput=0.1, lr_range=0.1, pilot=0.05, noise=0.05, branches=0.0
)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANYBATCH_DATA", str(tmp_path))
    monkeypatch.setenv("ANYBATCH_LEDGER", str(tmp_path / "ledger.jsonl"))
    quicken(monkeypatch)


def quicken(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(procedure, "budget_of", lambda *given: QUICK)
    patch.setattr(procedure, "ramp_and_probe_updates", lambda *given: (24, 12))
    patch.setattr(compose, "_NUM_DRAWS", 200)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in this process; exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(arguments))
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a plan."""
    out = tmp_path_factory.mktemp("plans") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        patch.setenv("ANYBATCH_LEDGER", "off")
        assert main(["plan", "digits", "--target", "0.97", "--out", str(out), "--json"]) == 0
    return out


def refuse_constant(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_it_says_the_answer_the_reasons_the_cost_and_the_next_command(call: Any) -> None:
    code, out, _ = call("plan", "digits", "--target", "0.97", "--out", "my plan")
    assert code == 0
    plan = Run("my plan").plan
    assert plan is not None
    lines = out.splitlines()
    assert lines[: len(plan.lines())] == plan.lines()
    assert [line for line in lines if line.startswith("why: ")]
    assert any(line.startswith("cost: ") and "short procedure" in line for line in lines)
    assert "plan: my plan/plan.json" in lines
    assert "next: anybatch train digits --plan 'my plan/plan.json'" in lines
    assert lines[-1] == "more: anybatch explain 'my plan/plan.json'"
    assert "\x1b" not in out


def test_json_is_one_strict_document_that_holds_the_plan(call: Any) -> None:
    code, out, err = call("plan", "digits", "--target", "loss<=0.4", "--json", "--out", "plan")
    assert (code, err) == (0, "")
    values = json.loads(out, parse_constant=refuse_constant)
    assert values.pop("plan") == "plan"
    assert Plan.from_dict(values) == Run("plan").plan


def test_a_target_out_of_reach_exits_1_and_leaves_a_whole_plan(call: Any) -> None:
    code, out, _ = call("plan", "digits", "--target", "loss<=0.0", "--out", "plan")
    assert code == 1
    assert "! target-far: the target loss<=0 may not be reached" in out
    run = Run("plan")
    assert run.status.name == "finished"
    assert run.plan is not None
    assert run.plan.predictions["seconds"].value is None


@pytest.mark.parametrize("place", ["", PLAN_FILE])
def test_explain_tells_everything_and_replays(call: Any, digits: Path, place: str) -> None:
    code, out, err = call("explain", str(digits / place), "--replay")
    assert (code, err) == (0, "")
    plan = Run(digits).plan
    assert plan is not None
    for reason in plan.reasons:
        assert f"  {reason.name}: {reason.sentence}" in out
    for sentence in plan.would_change:
        assert sentence in out
    assert "(present)" in out or "(plan, present)" in out
    assert out.splitlines()[-1] == "computed again from the raw samples: the same plan"


def test_explain_replays_in_another_process_without_torch(digits: Path) -> None:
    code = (
        "import sys\nfrom anybatch.cli import main\n"
        "from anybatch.planning import compose\ncompose._NUM_DRAWS = 200\n"
        f"code = main(['explain', {str(digits)!r}, '--replay'])\n"
        "assert 'torch' not in sys.modules\nsys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-300:] + result.stderr
    assert "the same plan" in result.stdout


def test_explain_notices_another_sample(call: Any, digits: Path) -> None:
    shutil.copytree(digits, "other")
    path = Path("other/measurements/pilot.json")
    values = json.loads(path.read_text())
    values["samples"]["metric"][-1] *= 0.9
    path.write_text(json.dumps(values))
    code, out, _ = call("explain", "other", "--replay")
    assert code == 1
    assert "ANOTHER plan" in out
    code, out, _ = call("explain", "other", "--replay", "--json")
    assert code == 1
    assert json.loads(out, parse_constant=refuse_constant)["replayed"] is False


def test_a_run_follows_the_plan_and_is_noted_once(call: Any, digits: Path) -> None:
    code, out, _ = call("train", "digits", "--plan", str(digits), "--out", "run")
    assert code in (0, 1)
    lines = out.splitlines()
    assert any(line.startswith("predicted ") for line in lines)
    plan, run = Run(digits).plan, Run("run")
    assert plan is not None
    assert run.plan == plan
    assert run.recipe == plan.recipe
    (row,) = read_ledger()
    assert row.task == "digits"
    assert row.actual_updates >= plan.pilot["updates"] or row.reached
    code, _, err = call("train", "--resume", "run")
    assert code == 2
    assert err.count("\n") == 1
    assert len(read_ledger()) == 1


def test_what_was_foretold_is_in_the_json(call: Any, digits: Path) -> None:
    _, out, _ = call("train", "digits", "--plan", str(digits), "--out", "run", "--json")
    values = json.loads(out, parse_constant=refuse_constant)
    assert set(values["planned"]) == {"seconds", "updates", "inside", "reached", "level"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["plan"], "Missing from anybatch plan"),
        (["plan", "digits"], "target must be given for a plan"),
        (["plan", "digits", "--target", "98"], "must be in [0, 1] for an accuracy"),
        (["plan", "digits", "--target", "colour>=1"], "must be about loss or accuracy"),
        (["plan", "digits", "--target", "accuracy<=0.5"], "must be accuracy>=VALUE"),
        (["plan", "digits", "--target", "0.9", "--budget", "0"], "--budget must be a share"),
        (["plan", "digits", "--target", "0.9", "--budget", "120%"], "--budget must be a share"),
        (["plan", "digits", "--target", "0.9", "--budget", "much"], "--budget must be a share"),
        (
            ["plan", "digits", "--target", "0.9", "--set", "batch_size=5000"],
            "batch_size must be <=",
        ),
        (["plan", "digits", "--target", "0.9", "--out", "/dev/null/out"], "must be writable"),
        (["explain", "nowhere"], "plan must be a folder with a plan.json"),
        (["train", "digits", "--plan", "nowhere"], "plan must be a folder with a plan.json"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    call: Any, options: list[str], message: str
) -> None:
    code, out, err = call(*options)
    assert (code, out) == (2, "")
    assert err.startswith("anybatch: ")
    assert err.count("\n") == 1, err
    assert message in err
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("options", "thing"),
    [
        (["--set", "batch_size=3"], "--set"),
        (["--recipe", "digits"], "--recipe"),
        (["--target", "0.5"], "--target"),
        (["--seeds", "2"], "--seeds"),
    ],
)
def test_what_the_plan_has_settled_is_refused(
    call: Any, digits: Path, options: list[str], thing: str
) -> None:
    code, _, err = call("train", "digits", "--plan", str(digits), *options)
    assert code == 2
    assert f"{thing} must be left out with --plan" in err
    assert err.count("\n") == 1


def test_another_tasks_plan_is_refused_and_leaves_no_folder(call: Any, digits: Path) -> None:
    Path("mine_made_here.py").write_text(
        "import torch, anybatch\n"
        "def task():\n"
        "    data = torch.eye(90, 3), torch.arange(90) % 2\n"
        "    return anybatch.Task(build_model=lambda: torch.nn.Linear(3, 2), train=data)\n"
    )
    sys.path.insert(0, str(Path.cwd()))
    try:
        code, _, err = call("train", "mine_made_here:task", "--plan", str(digits), "--out", "run")
    finally:
        sys.path.pop(0)
    assert code == 2
    assert "must" in err
    assert err.count("\n") == 1
    assert not Path("run").exists()


def test_a_second_plan_into_the_folder_is_refused_and_the_first_stays(
    call: Any, digits: Path
) -> None:
    before = (digits / PLAN_FILE).read_bytes()
    code, _, err = call("plan", "digits", "--target", "0.9", "--out", str(digits))
    assert code == 2
    assert "out must be a new or empty folder" in err
    assert f"anybatch explain {digits} shows its plan" in err
    assert (digits / PLAN_FILE).read_bytes() == before


def test_a_plans_folder_is_not_resumed(call: Any, digits: Path) -> None:
    for more in ([], ["--extend", "5 updates"]):
        code, _, err = call("train", "--resume", str(digits), *more)
        assert code == 2
        assert "must be a training, not a plan" in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema": 1, "request": 3}', '{"pri'])
def test_a_damaged_plan_is_told_in_one_line(call: Any, digits: Path, text: str) -> None:
    shutil.copytree(digits, "broken")
    Path("broken", PLAN_FILE).write_text(text)
    for command in (["explain", "broken"], ["train", "digits", "--plan", "broken"]):
        code, out, err = call(*command)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert "broken/plan.json" in err


def test_a_folder_without_its_samples_is_explained_but_not_replayed(
    call: Any, digits: Path
) -> None:
    shutil.copytree(digits, "bare")
    shutil.rmtree("bare/measurements")
    assert call("explain", "bare")[0] == 0
    code, _, err = call("explain", "bare", "--replay")
    assert code == 2
    assert "must hold a throughput" in err


def test_a_plans_folder_has_a_report(call: Any, digits: Path) -> None:
    code, out, err = call("report", str(digits), "--out", "page.html")
    assert (code, out, err) == (0, "page.html\n", "")
    page = Path("page.html").read_text()
    assert "<svg" in page
    assert not re.search(r"\bnan\b", page)


def test_an_interrupted_plan_says_what_it_knows(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*given: Any, **settings: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(procedure, "measure_noise_scale", ended)
    code, out, _ = call("plan", "digits", "--target", "0.97", "--out", "plan")
    assert code == 130
    assert out.startswith("partial: ended by Ctrl-C during the noise scale\n")
    assert "plan: plan/plan.json" in out
    assert Run("plan").status.name == "interrupted"
    code, out, _ = call("explain", "plan", "--replay")
    assert code == 0
    code, _, _ = call("train", "digits", "--plan", "plan", "--out", "run")
    assert code in (0, 1)
    first = next(iter(Run("run").evals()))
    assert first.update == next(iter(Run("plan").evals())).update  # from the pilot on
