"""The stages that choose: `curate`, its models paid through the ledger, and `plurality`."""

from __future__ import annotations

import importlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tutelage.curate.evidence import read_drops
from tutelage.errors import PartialError, UsageError
from tutelage.ledger import Ledger
from tutelage.recipe.jobs.funnel_rules import allowed_lines, quality_settings
from tutelage.recipe.load import build_recipe
from tutelage.recipe.run import run_recipe
from tutelage.recipe.single import run_single
from tutelage.records import Problem, Trace, Verdict, read_records, write_records

NAMES = "river stone market garden teacher ladder music engine pocket winter bridge candle letter harbor"


def text(name: Any, size: int) -> str:
    draw = random.Random(f"text {name}")
    return " ".join(draw.choices(NAMES.split(), k=size))


def pool(folder: Path, count: int = 12, domain: str = "d{}") -> tuple[list[Problem], list[Trace]]:
    """Problems with two traces each, the first right and the second wrong, the later the longer."""
    problems = [
        Problem(
            f"p{n}", f"{text(n, 20)}, how many are {n}?", str(n), domain=domain.format(n % 3), source="lab"
        )
        for n in range(count)
    ]
    traces = [
        Trace(f"t{n}.{s}", f"p{n}", s, "m", str(n + s), f"{text((n, s), 5 + n)} so", thinking_sampled=6 + n)
        for n in range(count)
        for s in range(2)
    ]
    write_records(folder / "q.parquet", problems, Problem)
    write_records(folder / "t.parquet", traces, Trace)
    said = ("correct", "incorrect")
    verdicts = [Verdict(each.id, each.problem_id, said[each.sample], "so", "number") for each in traces]  # type: ignore[arg-type]
    write_records(folder / "v.parquet", verdicts, Verdict)
    return problems, traces


def curate(folder: Path, out: str = "out", **settings: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "problems": [str(folder / "q.parquet")],
        "traces": [str(folder / "t.parquet")],
        "verdicts": [str(folder / "v.parquet")],
    }
    inputs |= {name: settings.pop(name) for name in ("benchmarks", "order") if name in settings}
    return run_single("curate", settings, folder / out / "traces.parquet", inputs=inputs)


def chosen(done: dict[str, Any]) -> list[str]:
    return [each.id for each in read_records(Path(done["outputs"]["traces"]), Trace)]


def document(done: dict[str, Any]) -> dict[str, Any]:
    found = json.loads(Path(done["outputs"]["curation"]).read_text())
    assert isinstance(found, dict)
    return found


# --- the stage ---


def test_what_a_choice_leaves(tmp_path: Path) -> None:
    problems, traces = pool(tmp_path)
    done = curate(tmp_path, keep="correct", target=5)
    metrics = done["metrics"]
    assert (metrics["kept"], metrics["problems"], metrics["method"], metrics["seed"]) == (5, 5, "s1", 0)
    stages = ("quality", "decontamination", "duplicates", "traces", "selection")
    assert [row["stage"] for row in metrics["funnel"]] == [f"curate: {name}" for name in stages]
    ids = chosen(done)
    assert len(ids) == 5 and all(name.endswith(".0") for name in ids)
    kept = read_records(Path(done["outputs"]["problems"]), Problem)
    assert [each.id for each in kept] == [name.replace("t", "p")[:-2] for name in ids]
    assert all(each in problems for each in kept)
    drops = read_drops(Path(done["outputs"]["drops"]))
    assert {each.record_id for each in drops} | set(ids) == {each.id for each in traces}
    told = document(done)
    assert told["source"] == {"name": "t", "traces": 24, "problems": 12}
    assert told["kept"] == {"traces": 5, "problems": 5} and told["target"] == 5
    assert told["lengths"]["unit"] == "tokens" and sum(told["lengths"]["after"]) == 5
    assert sum(told["domains"]["before"].values()) == 12 and sum(told["domains"]["after"].values()) == 5
    assert {each["record_id"] for each in told["kept_samples"]} == set(ids)
    assert all(each["text"] and each["question"] for each in (*told["samples"], *told["kept_samples"]))
    assert told["settings"]["domains_by"] == "own" and told["seconds"] >= 0
    page = Path(done["outputs"]["page"]).read_text()
    assert page.startswith("<!doctype html>") and "not-chosen" in page and "incorrect" in page


def test_the_same_again_and_another_seed(tmp_path: Path) -> None:
    pool(tmp_path, 40)
    one = chosen(curate(tmp_path, "a", target=8))
    assert chosen(curate(tmp_path, "b", target=8, workers=3)) == one
    assert (tmp_path / "a/traces.parquet").read_bytes() == (tmp_path / "b/traces.parquet").read_bytes()
    assert chosen(curate(tmp_path, "c", target=8, seed=1)) != one


def test_all_of_them_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    pool(tmp_path)
    done = curate(tmp_path, method="full", per_problem=2)
    assert chosen(done) == [f"t{n}.{s}" for n in range(12) for s in range(2)]
    assert chosen(curate(tmp_path, "b", method="longest", target=2)) == ["t11.0", "t10.0"]


def test_benchmarks_of_stages_and_files_are_looked_for(tmp_path: Path) -> None:
    problems, _ = pool(tmp_path)
    write_records(tmp_path / "test.parquet", [Problem("x", problems[3].question.upper())], Problem)
    (tmp_path / "bench.jsonl").write_text(json.dumps({"id": 7, "q": f"{text(5, 20)} and so on"}) + "\n")
    done = curate(
        tmp_path,
        benchmarks=[str(tmp_path / "test.parquet")],
        against=[str(tmp_path / "bench.jsonl")],
        against_column="q",
    )
    drops = {each.problem_id: each for each in read_drops(Path(done["outputs"]["drops"]))}
    assert (drops["p3"].rule, drops["p3"].benchmark, drops["p3"].matched_id) == ("exact", "test", "x")
    assert (drops["p5"].rule, drops["p5"].benchmark, drops["p5"].matched_id) == ("ngram-13", "bench", "7")
    told = document(done)
    assert [(each["name"], each["items"], each["column"]) for each in told["benchmarks"]] == [
        ("test", 1, "question"),
        ("bench", 1, "q"),
    ]
    hits = {each["detector"]: each["hits"] for each in told["detectors"]}
    assert hits["exact"] == 1 and hits["ngram-13"] == 2
    (tmp_path / "allow.txt").write_text(text(5, 20) + "\n\n")
    done = curate(
        tmp_path, "b", against=[str(tmp_path / "bench.jsonl")], against_column="q",
        allow=str(tmp_path / "allow.txt"), detectors=["ngram-13"],
    )  # fmt: skip
    assert "p5" in {each.problem_id for each in read_records(Path(done["outputs"]["traces"]), Trace)}


def test_domains_are_clusters_where_not_every_problem_has_one(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    problems, _ = pool(tmp_path)
    write_records(tmp_path / "q.parquet", [Problem("p0", "which?"), *problems[1:]], Problem)
    told = document(curate(tmp_path, target=4, clusters=3))
    assert told["settings"]["domains_by"] == "clusters"
    assert not {"d0", "d1", "d2"} & set(told["domains"]["before"])
    for number, settings in enumerate(({"domains": "own"}, {"method": "random"}, {"method": "longest"})):
        told = document(curate(tmp_path, f"b{number}", target=4, **settings))
        assert told["settings"]["domains_by"] == "own"
        assert told["domains"]["before"] == {"d1": 4, "d2": 4, "d0": 3, "(no domain)": 1}


def test_domains_must_be_in_a_list_of_subjects_that_is_given(tmp_path: Path) -> None:
    pool(tmp_path)
    (tmp_path / "subjects.jsonl").write_text('{"code": "1", "title": "d0"}\n{"code": "2", "title": "d1"}\n')
    with pytest.raises(UsageError, match=r"1 labels of the problems are not in the list of subjects: 'd2'"):
        curate(tmp_path, domains="own", subjects=str(tmp_path / "subjects.jsonl"))


def test_solvers_by_name(tmp_path: Path) -> None:
    pool(tmp_path)
    for name, least in (("weak", 10), ("strong", 4)):
        said = [
            Verdict(f"s{n}", f"p{n}", "correct" if n >= least else "incorrect", "", "number")
            for n in range(12)
        ]
        write_records(tmp_path / f"{name}.parquet", said, Verdict)
    files = {name: f"file:{tmp_path}/{name}.parquet" for name in ("weak", "strong")}
    done = curate(tmp_path, solvers=files)
    assert sorted(each.id for each in read_records(Path(done["outputs"]["problems"]), Problem)) == [
        f"p{n}" for n in range(4)
    ]
    reasons = Counter(
        each.reason for each in read_drops(Path(done["outputs"]["drops"])) if each.rule == "solved"
    )
    assert reasons == {"weak solved 1 of 1": 4, "strong solved 1 of 1": 12}  # two traces each


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "a labeller that is not asked": (
        {"labeller": {"kind": "endpoint", "base_url": "http://127.0.0.1:1/v1", "model": "m"}},
        "llm and labeller go together",
    ),
    "nobody who labels": ({"domains": "llm"}, "llm and labeller go together"),
    "weights for nothing": ({"weights": {"a": 1.0}}, "s1-code and weights go together"),
    "no weights": ({"method": "s1-code"}, "s1-code and weights go together"),
    "first of all": ({"method": "random", "first": [{"domain": "d0"}]}, "first is for the methods s1"),
    "low above high": ({"low": 0.5, "high": 0.2}, "low is 0.5, more than high"),
    "subjects for clusters": ({"subjects": "x.jsonl", "domains": "clusters"}, "subjects is for domains"),
    "a rule that is none": ({"quality": {"off": ["lop"]}}, "there is no rule 'lop'; the rules are failed"),
    "a setting that is none": (
        {"quality": {"most_word": 5}},
        "quality: there is no setting 'most_word'; did you mean 'most_words'?",
    ),
    "a text for a number": ({"quality": {"loop_share": ["x"]}}, "quality.loop_share: "),
    "nothing for a number": ({"quality": {"most_characters": None}}, "quality.most_characters: "),
    "a detector that is none": ({"detectors": ["ngram"]}, "no detector 'ngram'; there are exact"),
    "a threshold above 1": ({"thresholds": {"fuzzy": 1.5}}, "thresholds.fuzzy"),
    "an unknown source": ({"order": ["lab", "web"]}, "order: no record is of 'web'; sources there: lab"),
    "a target of nothing": ({"target": 0}, "target"),
    "a file that is gone": ({"against": ["gone.jsonl"]}, "gone.jsonl"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path: Path, mistake: str) -> None:
    problems, _ = pool(tmp_path)
    (tmp_path / "x.jsonl").write_text('{"code": "1", "title": "d0"}\n')
    settings, message = MISTAKES[mistake]
    settings = dict(settings)
    if "subjects" in settings:
        settings["subjects"] = str(tmp_path / "x.jsonl")
    if "detectors" in settings:
        write_records(tmp_path / "test.parquet", problems[:1], Problem)
        settings["benchmarks"] = [str(tmp_path / "test.parquet")]
    with pytest.raises(UsageError) as refused:
        curate(tmp_path, **settings)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "out/traces.parquet").exists()


def test_nothing_left_and_no_problems_are_one_line(tmp_path: Path) -> None:
    pool(tmp_path)
    with pytest.raises(UsageError, match=r"nothing is left after quality \(too-short 24\)"):
        curate(tmp_path, quality={"least_words": 100})
    write_records(tmp_path / "q.parquet", [], Problem)
    with pytest.raises(UsageError, match=r"trace 't0\.0' is of problem 'p0'"):
        curate(tmp_path)
    write_records(tmp_path / "t.parquet", [], Trace)
    with pytest.raises(UsageError, match="the pool holds no traces"):
        curate(tmp_path)


def test_settings_of_quality_and_lines_of_boilerplate(tmp_path: Path) -> None:
    found = quality_settings({"off": ["loop"], "least_words": 3, "art_lines": None})
    assert (found.off, found.least_words, found.art_lines) == (("loop",), 3, None)
    (tmp_path / "a.txt").write_bytes(b"one\n \n\xc3\xa4\n")
    assert allowed_lines(tmp_path / "a.txt") == ["one", "ä"]
    (tmp_path / "b.txt").write_bytes(b"one\n\xff")
    with pytest.raises(UsageError, match=r"allow: .*b\.txt: not UTF-8 text \(byte 4\)"):
        allowed_lines(tmp_path / "b.txt")
    with pytest.raises(UsageError, match=r"allow: .*cannot be read"):
        allowed_lines(tmp_path)


# --- models that label and grade ---


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module with the fake server, which lives beside the tests of teachers."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "teachers"))
    return importlib.import_module("endpoint_server")


def at(url: str, **more: Any) -> dict[str, Any]:
    return {"kind": "endpoint", "base_url": url, "model": "j", "max_tokens": 50, **more}


def asked(body: dict[str, Any]) -> int:
    """Which problem a prompt is about."""
    found = re.search(r"how many are (\d+)\?", body["messages"][-1]["content"])
    assert found
    return int(found[1])


@pytest.fixture
def labels(server: Any) -> Callable[[int, dict[str, Any]], Any]:
    def script(number: int, body: dict[str, Any]) -> Any:
        return server.Say(server.completion(f"It counts.\n{('05', '11')[asked(body) % 2]}"))

    return script


def test_labels_are_paid_once(server: Any, labels: Any, tmp_path: Path) -> None:
    pool(tmp_path, domain="")
    settings: dict[str, Any] = {"domains": "llm", "target": 4}
    price = {"prompt": "1", "completion": "1"}
    with server.serving(labels) as fake:
        done = curate(tmp_path, labeller=at(fake.url, price=price), **settings)
        assert document(done)["domains"]["before"] == {"Combinatorics": 6, "Number theory": 6}
        assert done["metrics"]["asked"] == {"labeller": {"model": "j", "replies": 12, "dollars": "0.00036"}}
        assert len(fake.bodies) == 12
        curate(tmp_path, labeller=at(fake.url), seed=3, **settings)
        assert len(fake.bodies) == 12, "another seed asks nothing anew"
    with Ledger(tmp_path / "out/ledger.sqlite") as ledger:
        assert ledger.totals().replies == 12


def test_only_what_is_left_is_labelled(server: Any, labels: Any, tmp_path: Path) -> None:
    pool(tmp_path)
    said = [Verdict(f"s{n}", f"p{n}", "correct" if n else "incorrect", "", "number") for n in range(12)]
    write_records(tmp_path / "weak.parquet", said, Verdict)
    with server.serving(labels) as fake:
        curate(
            tmp_path, domains="llm", labeller=at(fake.url),
            solvers={"weak": f"file:{tmp_path}/weak.parquet"}, hopeless="keep",
        )  # fmt: skip
        assert [asked(body) for body in fake.bodies] == [0]


def test_too_few_labels_are_refused(server: Any, tmp_path: Path) -> None:
    pool(tmp_path, domain="")

    def script(number: int, body: dict[str, Any]) -> Any:
        return server.Say(server.completion("05" if asked(body) < 6 else "I do not know."))

    with server.serving(script) as fake:
        with pytest.raises(UsageError, match="6 of 12 problems have no label, most often: not in the form"):
            curate(tmp_path, domains="llm", labeller=at(fake.url))
        told = document(curate(tmp_path, domains="llm", labeller=at(fake.url), labelled=0.5))
        assert told["domains"]["before"] == {"(unlabelled)": 6, "Combinatorics": 6}
        assert len(fake.bodies) == 12


def test_a_budget_that_is_used_up_stops_before_anything_is_chosen(
    server: Any, labels: Any, tmp_path: Path
) -> None:
    pool(tmp_path, domain="")
    price = {"prompt": "0", "completion": "1000"}  # 0.05 dollars reserved, 0.02 paid for each request
    with server.serving(labels) as fake:
        labeller = at(fake.url, price=price, budget="0.1", concurrency=1)
        with pytest.raises(PartialError, match="budget"):
            curate(tmp_path, domains="llm", labeller=labeller, labelled=0.1)
        assert 0 < len(fake.bodies) < 12 and not (tmp_path / "out/traces.parquet").exists()
        before = len(fake.bodies)
        curate(tmp_path, domains="llm", labeller={**labeller, "budget": "9"})
        assert len(fake.bodies) == 12 and before < 12, "what was bought was used"


def grades(server: Any, told: Callable[[int], str]) -> Callable[[int, dict[str, Any]], Any]:
    def script(number: int, body: dict[str, Any]) -> Any:
        mark = re.search(r"GRADE-(\w+) steps=NUMBER", body["messages"][-1]["content"])
        assert mark
        return server.Say(server.completion(f"Hm.\nGRADE-{mark[1]} {told(asked(body))}"))

    return script


def test_a_rubric_drops_what_it_grades_too_easy(server: Any, tmp_path: Path) -> None:
    pool(tmp_path)

    def told(number: int) -> str:
        if number == 11:
            return "a lot"
        return f"steps={number} level={2 if number > 3 else 1} recall={'yes' if number == 9 else 'no'}"

    with server.serving(grades(server, told)) as fake:
        rubric = {"judge": at(fake.url), "least_steps": 2}
        done = curate(tmp_path, rubric=rubric)
        assert len(fake.bodies) == 12
        drops = {
            each.problem_id: each.rule
            for each in read_drops(Path(done["outputs"]["drops"]))
            if each.stage == "rubric"
        }
        assert drops == {
            "p0": "few-steps", "p1": "few-steps", "p2": "low-level", "p3": "low-level", "p9": "recall",
        }  # fmt: skip
        assert done["metrics"]["notes"] == [
            "the rubric could not grade 1 of 12 problems and dropped none of those"
        ]
        assert document(done)["notes"] == done["metrics"]["notes"]
        assert done["metrics"]["asked"]["rubric"]["replies"] == 12
        kept = curate(tmp_path, rubric={**rubric, "recall": True, "least_level": 1, "least_steps": 1})
        assert len(fake.bodies) == 12 and kept["metrics"]["problems"] == 11


def test_a_judge_that_grades_nothing_stops(server: Any, tmp_path: Path) -> None:
    pool(tmp_path)
    with (
        server.serving(grades(server, lambda number: "fine")) as fake,
        pytest.raises(UsageError, match=r"no problem could be graded \(not in the form\)"),
    ):
        curate(tmp_path, rubric={"judge": at(fake.url)})
    assert not (tmp_path / "out/traces.parquet").exists()


# --- in a recipe ---


TEXTS = {
    "kind": "collect",
    "problems": "world.train",
    "samples": 3,
    "teacher": {"kind": "lab", "style": "careless", "slip": 0.4},
}


def recipe(**stages: Any) -> Any:
    data = {
        "name": "small",
        "seeds": [0, 1],
        "stages": {
            "world": {"kind": "lab-problems", "train": 60, "test": 20, "min_steps": 2, "max_steps": 4},
            "texts": TEXTS,
            "judged": {"kind": "verify", "problems": "world.train", "traces": "texts"},
            **stages,
        },
    }
    return build_recipe(data)


PICK = {
    "kind": "curate",
    "problems": ["world.train"],
    "traces": ["texts"],
    "verdicts": ["judged"],
    "benchmarks": ["world.test"],
    "detectors": ["exact"],
    "near": None,
    "domains": "own",
    "target": 10,
    "keep": "correct",
}


@pytest.mark.slow
def test_each_seed_chooses_and_is_learned_from(tmp_path: Path) -> None:
    stages = {
        "student": {"kind": "student", "source": "tiny"},
        "pick": PICK,
        "fixed": {**PICK, "seed": 7},
        "arm": {
            "kind": "sft",
            "system": "own",
            "model": "student",
            "problems": ["pick.problems"],
            "traces": ["pick.traces"],
            "steps": 2,
            "batch": 2,
        },
    }
    run_recipe(recipe(**stages), tmp_path)
    found = {
        name: [each.id for each in read_records(tmp_path / f"data/{name}.traces.parquet", Trace)]
        for name in ("pick-seed0", "pick-seed1", "fixed-seed0", "fixed-seed1")
    }
    assert all(len(ids) == 10 for ids in found.values())
    assert found["pick-seed0"] != found["pick-seed1"] and found["fixed-seed0"] == found["fixed-seed1"]
    right = {
        each.trace_id
        for each in read_records(tmp_path / "data/judged.verdicts.parquet", Verdict)
        if each.status == "correct"
    }
    assert set(found["pick-seed0"]) <= right
    told = json.loads((tmp_path / "metrics/pick-seed1.json").read_text())
    assert told["seed"] == 1 and (tmp_path / "metrics/pick-seed1.html").is_file()
    assert list(tmp_path.glob("models/arm-seed*"))


@pytest.mark.slow
def test_gold_answers_by_plurality_are_what_the_next_stage_takes(tmp_path: Path) -> None:
    stages = {
        "voted": {"kind": "plurality", "problems": "world.train", "traces": ["texts"], "replace": True},
        # The same replies once more, from the ledger, of the problems that are left.
        "kept": {**TEXTS, "problems": "voted.problems"},
        "checked": {"kind": "verify", "problems": "voted.problems", "traces": "kept"},
        "pick": {**PICK, "problems": ["voted.problems"], "traces": ["kept"], "verdicts": ["checked"]},
    }
    run_recipe(recipe(**stages), tmp_path)
    kept = read_records(tmp_path / "data/voted.problems.parquet", Problem)
    drops = read_drops(tmp_path / "data/voted.drops.parquet")
    assert len(kept) + len(drops) == 60 and kept and drops
    assert {each.rule for each in drops} <= {"all-agree", "none-agree", "tie", "too-few-answers"}
    assert all(each.metadata["gold_from"] == "plurality" for each in kept)
    chosen = read_records(tmp_path / "data/pick-seed0.problems.parquet", Problem)
    assert 0 < len(chosen) <= 10 and {each.id for each in chosen} <= {each.id for each in kept}


def votes(folder: Path, *answers: str) -> None:
    write_records(folder / "q.parquet", [Problem("p", "How many?")], Problem)
    traces = [Trace(f"t{n}", "p", n, "m", answer) for n, answer in enumerate(answers)]
    write_records(folder / "t.parquet", traces, Trace)


def vote(folder: Path, **settings: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = {"problems": str(folder / "q.parquet"), "traces": [str(folder / "t.parquet")]}
    return run_single("plurality", settings, folder / "voted.parquet", inputs=inputs)


def test_the_stage_plurality(tmp_path: Path) -> None:
    votes(tmp_path, "It is 3.", "So 3", "4", "3")
    done = vote(tmp_path)
    (problem,) = read_records(tmp_path / "voted.parquet", Problem)
    assert problem.gold == "3" and problem.metadata["vote_share"] == 0.75
    assert done["metrics"] == {
        "problems": 1,
        "funnel": [{"stage": "plurality: a majority is right", "kept": 1, "dropped": 0, "reasons": {}}],
    }
    assert read_drops(Path(done["outputs"]["drops"])) == []


def test_no_question_left_names_the_reasons(tmp_path: Path) -> None:
    votes(tmp_path, "3", "3", "3")
    with pytest.raises(UsageError, match=r"no question is left \(.*all-agree.*\); loosen the shares"):
        vote(tmp_path)
    with pytest.raises(UsageError, match="least_share"):
        vote(tmp_path, least_share=0.9, most_share=0.5)
    assert not (tmp_path / "voted.parquet").exists()
