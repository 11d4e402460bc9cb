"""What the README shows works as it says."""

import re
from pathlib import Path

import pytest

from tutelage.cli import app
from tutelage.recipe.load import shipped_recipes

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_its_python_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    said = re.findall(r"# (\w+)", code)
    assert said and capsys.readouterr().out.split() == said


def test_its_verbs_are_those_there_are() -> None:
    verbs = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)) == verbs


def test_the_recipes_and_files_it_names_exist() -> None:
    named = set(re.findall(r"tutelage run ([\w./-]+)", README))
    files = {name for name in named if name.endswith(".yaml")}
    assert named - files <= set(shipped_recipes())
    root = Path(__file__).parents[1]
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")}
    assert links and all((root / path).exists() for path in files | links)


def test_the_endpoint_it_shows_is_a_valid_stage() -> None:
    import yaml

    from tutelage.recipe.load import build_recipe
    from tutelage.recipe.plan import plan_jobs

    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    source = {"kind": "problems", "train": "hub:a/b", "test": "hub:a/b"}
    recipe = build_recipe({"name": "readme", "stages": {"problems": source, **yaml.safe_load(block)}})
    assert [job.id for job in plan_jobs(recipe)][-1] == "judged"
