"""What the documents show exists: verbs, their options, files they link to."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from tutelage.cli import app
from tutelage.recipe.load import shipped_recipes

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/README.md")])
VERBS = get_command(app).commands  # type: ignore[attr-defined]


def commands(text: str) -> list[str]:
    """The tutelage commands in code blocks and in code spans, one line each."""
    blocks = [block.replace("\\\n", " ") for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)]
    lines = [line.split(" #")[0] for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"\s*(?:\S*/)?tutelage [a-z]", line)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_use_verbs_and_options_that_there_are(path: Path) -> None:
    for line in commands(path.read_text(encoding="utf-8")):
        verb = line.split("tutelage ", 1)[1].split()[0]
        assert verb in VERBS, line
        known = {option for parameter in VERBS[verb].params for option in parameter.opts}
        given = set(re.findall(r"(?<=\s)--[a-z][a-z-]*", line))
        assert given <= known, line
        assert "--budget" not in given or "--max-tokens" in given, f"a budget needs a limit: {line}"


def test_recipes_that_are_named_are_shipped() -> None:
    texts = [*DOCUMENTS, *ROOT.glob("src/tutelage/**/*.py"), *ROOT.glob("src/tutelage/recipes/*.yaml")]
    named = {
        name
        for path in texts
        for name in re.findall(r"tutelage run ([a-z0-9-]+)(?![\w./-])", path.read_text("utf-8"))
    }
    assert {"lab", "smollm2-gsm8k"} <= named <= {*shipped_recipes()}


def test_commands_are_found() -> None:
    assert any("--budget 5.00" in line for line in commands((ROOT / "README.md").read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []
