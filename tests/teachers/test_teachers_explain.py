"""Every request is in the ledger, or there is a reason why not, and what differs is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import Say, completion, echo, problems, serving

from tutelage.errors import UsageError
from tutelage.ledger import Ledger
from tutelage.records import Problem
from tutelage.teachers.asked import Asked, differences, read_request
from tutelage.teachers.collect import collect
from tutelage.teachers.endpoint import EndpointTeacher
from tutelage.teachers.explain import Explanation, explain
from tutelage.teachers.teacher import Teacher


def explained(
    teacher: Teacher, ledger: Path, count: int = 3, samples: int = 1, asked: list[Problem] | None = None
) -> Explanation:
    wanted = problems(count) if asked is None else asked
    return explain((teacher.order(each, sample) for each in wanted for sample in range(samples)), ledger)


def reasons(found: Explanation) -> list[tuple[str, str, int]]:
    return [(miss.why, miss.detail, miss.count) for miss in found.misses]


@pytest.fixture
def bought(tmp_path: Path) -> tuple[EndpointTeacher, Path]:
    """A teacher that was asked the first three questions, and the ledger. Its server is gone."""
    with serving(echo) as server:
        teacher = EndpointTeacher(
            server.url, "m", max_tokens=8192, system="Think.", sampling={"temperature": 0.7}, seed=0
        )
        collect(problems(3), teacher, samples=2, ledger_path=tmp_path / "l.sqlite")
    return teacher, tmp_path / "l.sqlite"


def test_a_ledger_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    found = explained(EndpointTeacher("http://localhost:1/v1", "m"), tmp_path / "l.sqlite")
    assert reasons(found) == [("never asked", "", 3)] and list(tmp_path.iterdir()) == []


def test_what_is_stored_is_a_hit_by_state(bought: tuple[EndpointTeacher, Path]) -> None:
    found = explained(bought[0], bought[1], samples=2)
    assert found.hits == {"done": 6} and not found.misses
    assert found.to_json() == {
        "requests": 6,
        "requests_from_ledger": 6,
        "would_be_sent": 0,
        "states": {"done": 6},
        "misses": [],
    }


Change = Callable[[EndpointTeacher], EndpointTeacher]
CHANGES: dict[str, tuple[Change, str, str]] = {
    "one setting": (
        lambda teacher: replace(teacher, max_tokens=32768),
        "other settings",
        "max_tokens: 8192 -> 32768",
    ),
    "several settings": (
        lambda teacher: replace(teacher, system="", sampling={"temperature": 1.0, "top_p": 0.9}),
        "other settings",
        'temperature: 0.7 -> 1.0, system: "Think." -> (not set), top_p: (not set) -> 0.9',
    ),
    "a seed": (lambda teacher: replace(teacher, seed=5), "other settings", "seed: 0 -> 5"),
    "a nested field": (
        lambda teacher: replace(teacher, extra={"chat": {"thinking": False}}),
        "other settings",
        "chat.thinking: (not set) -> false",
    ),
    "the prompt": (
        lambda teacher: replace(teacher, prompt="Q: {question}\nA:"),
        "other settings",
        r'prompt: "{question}" -> "Q: {question}\nA:"',
    ),
    "the model": (lambda teacher: replace(teacher, model="n"), "another teacher", "model: m -> n"),
    "the server": (
        lambda teacher: replace(teacher, base_url="http://other/v1"),
        "another teacher",
        "base_url: URL -> http://other/v1",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_settings_that_differ_are_named_with_both_values(
    bought: tuple[EndpointTeacher, Path], change: str
) -> None:
    teacher, ledger = bought
    changed, why, detail = CHANGES[change]
    detail = detail.replace("URL", teacher.base_url)
    found = explained(changed(teacher), ledger, samples=2)
    assert {(miss.why, frozenset(miss.detail.split(", ")), miss.count) for miss in found.misses} == {
        (why, frozenset(detail.split(", ")), 6)
    }
    assert found.misses[0].examples[:2] == [("p0", 0), ("p0", 1)] and len(found.misses[0].examples) == 5


def test_a_prompt_that_was_another_one_before_is_found_out(tmp_path: Path) -> None:
    with serving(echo) as server:
        teacher = EndpointTeacher(server.url, "m", prompt="Solve this.\n{question}\nThink first.")
        collect(problems(3), teacher, samples=1, ledger_path=tmp_path / "l.sqlite")
        found = explained(replace(teacher, prompt="{question}"), tmp_path / "l.sqlite")
    detail = r'prompt: "Solve this.\n{question}\nThink first." -> "{question}"'
    assert reasons(found) == [("other settings", detail, 3)]


def test_the_nearest_of_several_requests_is_shown(bought: tuple[EndpointTeacher, Path]) -> None:
    teacher, ledger = bought
    with serving(echo) as server:
        near = replace(teacher, base_url=server.url, sampling={"temperature": 0.7}, max_tokens=100)
        collect(problems(3), near, samples=1, ledger_path=ledger)
        found = explained(replace(near, max_tokens=101), ledger)
    assert reasons(found) == [("other settings", "max_tokens: 100 -> 101", 3)]


def test_further_samples_and_new_questions_were_never_asked(bought: tuple[EndpointTeacher, Path]) -> None:
    found = explained(bought[0], bought[1], count=4, samples=3)
    assert found.hits == {"done": 6}
    assert sorted(reasons(found)) == [
        ("never asked", "", 3),
        ("never asked", "other samples of the question were", 3),
    ]


def test_failures_and_replies_that_never_came_have_their_reason(tmp_path: Path) -> None:
    def script(number: int, body: dict[str, Any]) -> Say:
        bad = "1?" in body["messages"][-1]["content"]
        return Say({"error": {"message": "no such field"}}, 400) if bad else Say(completion())

    path = tmp_path / "l.sqlite"
    with serving(script) as server:
        teacher = EndpointTeacher(server.url, "m", retries=0)
        collect(problems(2), teacher, samples=1, ledger_path=path)
    flying, unread = teacher.order(problems(4)[2], 0), teacher.order(problems(4)[3], 0)
    with Ledger(path) as ledger:
        ledger.owe([flying.debt, unread.debt])
        ledger.store(unread.debt.key, b"{}")
    found = explained(teacher, path, count=4)
    assert found.hits == {"done": 1, "owed": 1}
    assert sorted(reasons(found)) == [
        ("failed", "HTTP 400: no such field", 1),
        ("no reply came", "it was in flight when its process ended, or another process is buying it", 1),
    ]


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.sqlite").write_text("not a ledger at all, whatever its name says " * 100)
    with pytest.raises(UsageError, match="not a readable ledger"):
        explained(EndpointTeacher("http://localhost:1/v1", "m"), tmp_path / "l.sqlite")


def test_long_values_are_cut_and_unusual_messages_are_compared() -> None:
    messages = '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, %s]'
    read = read_request("http://h m", '{"model": "m", "messages": ' + messages % '"?"' + "}", 0)
    assert read.text == "?" and read.rest["messages.1"] == {"role": "assistant", "content": "b"}
    (shown,) = differences(Asked({"system": "x" * 500}, "{question}"), Asked({}, "{question}"))
    assert shown.startswith('system: "xxx') and shown.endswith("… -> (not set)") and len(shown) < 110
