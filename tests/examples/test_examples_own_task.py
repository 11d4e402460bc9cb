"""The example of a task of one's own works as its README says."""

import re
from pathlib import Path

import pytest

from tutelage.problems import read_problems
from tutelage.records import Trace
from tutelage.verify import judge, load_function

TASK = Path(__file__).parents[2] / "examples" / "own-task"
CHECKER = f"{TASK / 'checker.py'}:check"


def test_thirty_questions_whose_answers_pass_and_whose_perturbed_answers_fail() -> None:
    problems = read_problems(TASK / "questions.jsonl", checker=CHECKER)
    assert len(problems) == 30 and all(problem.gold and problem.metadata["solution"] for problem in problems)
    value = load_function(CHECKER).__globals__["value"]
    assert all(value(problem.gold) == int(re.findall(r"\d+", problem.question)[0]) for problem in problems)
    assert all((problem.gold or "") in problem.metadata["solution"] for problem in problems)
    right = [Trace(f"r{p.id}", p.id, 0, "m", f"It is {p.gold}.") for p in problems]
    wrong = [Trace(f"w{p.id}", p.id, 0, "m", f"It is M{p.gold}.") for p in problems]
    verdicts = list(judge({p.id: p for p in problems}, [*right, *wrong]))
    assert [v.status for v in verdicts] == ["correct"] * 30 + ["incorrect"] * 30


def test_the_code_of_its_readme_runs_and_prints_what_it_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (TASK / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(TASK.parents[1])
    exec(compile(code, "README.md", "exec"), {})
    said = re.findall(r"# (\w+)", code)
    assert capsys.readouterr().out.split() == said == ["correct", "undecided", "incorrect"]
