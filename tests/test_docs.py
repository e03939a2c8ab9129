"""What README and docs show runs, word for word."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from anybatch.cli import main
from anybatch.recipe_file import load_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def test_python_of_every_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pages = {page.name: blocks(page, "python") for page in PAGES}
    assert len(pages["README.md"]) == 2
    assert len(pages["own-task.md"]) == 1
    for name, codes in pages.items():
        names: dict[str, object] = {"__name__": "page"}  # a page reads from top to bottom
        for code in codes:
            exec(compile(code, name, "exec"), names)
    assert capsys.readouterr().out.count("finished (the whole duration was trained)") == 7
    (page,) = tmp_path.rglob("report.html")  # of the README's own model
    assert "<svg" in page.read_text()


def test_the_own_model_of_the_readme_takes_ten_lines() -> None:
    lines = [line for line in blocks(ROOT / "README.md", "python")[0].splitlines() if line]
    assert len([line for line in lines if not line.startswith(("import", "from"))]) <= 10


def test_recipes_in_the_docs_are_valid(tmp_path: Path) -> None:
    found = [code for page in PAGES for code in blocks(page, "toml")]
    assert found
    for number, code in enumerate(found):
        path = tmp_path / f"{number}.toml"
        path.write_text(code)
        load_recipe(str(path))


def commands() -> list[str]:
    lines = [line.strip() for page in PAGES for line in page.read_text().splitlines()]
    shown = [line.partition("#")[0].strip() for line in lines if line.startswith("anybatch ")]
    quick = [line for line in shown if line.split()[1] in ("tasks", "recipe")]
    unwanted = ("~", "runs/", "--download")  # a home, runs of before, the network
    return sorted({line for line in quick if not any(text in line for text in unwanted)})


def test_commands_of_the_docs_do_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipe", "show", "mnist"]) == 0
    (tmp_path / "my.toml").write_text(capsys.readouterr().out)
    assert len(commands()) >= 4
    for line in commands():
        assert main(shlex.split(line.partition(">")[0])[1:]) == 0, line


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize(
    ("name", "said"), [("own_loop.py", "EvalRecord(update="), ("ranks.py", "1 process(es)")]
)
def test_the_examples_run(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    assert said in capsys.readouterr().out
