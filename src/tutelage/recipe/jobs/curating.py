"""The job that chooses what is learned from, by the funnel.

Promises: outputs are whole or absent; what a language model is asked goes through the run's ledger and its
own budget; the metrics hold every count that the report shows.
Does not: hold a room's logic (see `curate`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

import tutelage
from tutelage.curate import clusters, rubric
from tutelage.curate.benchmarks import of_problems, read_benchmarks
from tutelage.curate.difficulty import pass_rates
from tutelage.curate.domains import label, require_coverage, require_listed
from tutelage.curate.drops import Drop
from tutelage.curate.evidence import (
    Texts,
    histogram,
    sample_rows,
    shares,
    shown_drops,
    shown_records,
    write_drops,
)
from tutelage.curate.funnel import BY_DOMAIN, Chosen, Helpers, Rules, run_funnel
from tutelage.curate.looks import Plan, ProblemLook, look_at_problems, look_at_traces
from tutelage.curate.meaning import DETECTOR
from tutelage.curate.rejection import judged
from tutelage.curate.subjects import SUBJECTS, read_subjects
from tutelage.curate.watch import width
from tutelage.errors import UsageError
from tutelage.recipe import curation
from tutelage.recipe.files import write_text
from tutelage.recipe.jobs.asking import JudgeDesk, judge_teacher
from tutelage.recipe.jobs.funnel_rules import by_field, quality_settings, rules_of, watch_settings
from tutelage.recipe.jobs.meaning import look_by_meaning
from tutelage.recipe.stage import JobContext
from tutelage.records import Problem, Trace, Verdict, iter_records, read_records, write_records
from tutelage.report.curation import render_curation

OWN_LABEL = "(no domain)"


def curate(ctx: JobContext[curation.Curate]) -> dict[str, Any]:
    """Choose traces for one seed.

    Raises UsageError where settings and data do not go together, and when nothing is left."""
    started = time.monotonic()
    config = ctx.config
    work = _Work(ctx)
    looks, sketches = look_at_problems(
        work.plan, engine=config.engine, workers=work.workers, progress=ctx.progress
    )
    looks = work.by_meaning(looks)
    traces = look_at_traces(
        work.plan, work.traces, engine=config.engine, workers=work.workers, progress=ctx.progress
    )
    verdicts = judged(
        v for source in ctx.inputs.get("verdicts", ()) for v in read_records(source.path, Verdict)
    )
    solvers = {
        source.key: pass_rates(read_records(source.path, Verdict)) for source in ctx.inputs.get("solvers", ())
    }
    rules = rules_of(config, ctx.seed)
    found = run_funnel(looks, traces, sketches, verdicts, solvers, rules, work.helpers(looks))
    found.notes += work.notes
    document = work.write(found, looks, rules)
    document["seconds"] = round(time.monotonic() - started, 2)
    write_text(ctx.outputs["curation"], json.dumps(document, indent=1) + "\n")
    render_curation(document, ctx.outputs["page"])
    return {
        "kept": len(found.traces),
        "problems": len(found.problems),
        "method": rules.method,
        "target": rules.target,
        "seed": rules.seed,
        "funnel": [{**row, "stage": f"{ctx.stage}: {row['stage']}"} for row in found.rows],
        "notes": found.notes,
        "length_mean": round(sum(found.after) / max(1, len(found.after)), 2),
        "length_unit": found.unit,
        **({"asked": work.asked()} if work.desks else {}),
    }


def _taken(questions: pa.ChunkedArray, places: Sequence[int]) -> list[str]:
    """The questions at `places`."""
    return [text or "" for text in questions.take(pa.array(places, pa.int64())).to_pylist()]


class _Work:
    """What one call of the stage reads, asks and writes."""

    def __init__(self, ctx: JobContext[curation.Curate]) -> None:
        config = ctx.config
        self.ctx, self.config = ctx, config
        self.problems = tuple(source.path for source in ctx.inputs["problems"])
        self.traces = [source.path for source in ctx.inputs["traces"]]
        self.workers = config.workers or ctx.threads
        self.benchmarks = [
            of_problems(source.stage or source.path.stem, read_records(source.path, Problem))
            for source in ctx.inputs.get("benchmarks", ())
        ]
        if config.against:
            self.benchmarks += read_benchmarks(config.against, config.against_column)
        self.against = watch_settings(config, self.benchmarks)
        self.plan = Plan(
            self.problems,
            quality_settings(config.quality),
            self.against,
            limo=config.prefer == "limo",
            sketches=config.near is not None,
        )
        self.desks: dict[str, JudgeDesk] = {}
        self.labels_by = config.domains
        self.notes: list[str] = []

    def _questions(self) -> pa.ChunkedArray:
        """All questions, in the order of the looks."""
        tables = [pq.read_table(path, columns=["question"]) for path in self.problems]
        return pa.chunked_array(
            [chunk for table in tables for chunk in table["question"].chunks], pa.string()
        )

    def by_meaning(self, looks: list[ProblemLook]) -> list[ProblemLook]:
        """The looks, with a hit more where a question that no detector dropped has one by its meaning."""
        settings = self.config.meaning
        if settings is None or self.against is None:
            return looks
        left = [at for at, look in enumerate(looks) if all(hit.partial for hit in look.hits)]
        found = look_by_meaning(
            _taken(self._questions(), left),
            self.against,
            settings,
            ledger=self.ctx.ledger_path,
            progress=self.ctx.progress,
        )
        if found.desk is not None:
            self.desks["meaning"] = found.desk
        self.notes += found.notes
        looks = list(looks)
        for hit in found.hits:
            at = left[hit.row]
            looks[at] = replace(looks[at], hits=(*looks[at].hits, hit))
        return looks

    def helpers(self, looks: Sequence[ProblemLook]) -> Helpers:
        """What the funnel asks for."""
        place = {look.id: at for at, look in enumerate(looks)}
        column = self._questions()

        def questions(ids: Sequence[str]) -> list[str]:
            return _taken(column, [place[name] for name in ids])

        def vectors(ids: Sequence[str]) -> NDArray[np.float32]:
            return clusters.vectors(questions(ids), seed=0)

        own = {look.id: look.domain for look in looks}
        return Helpers(
            domains=lambda ids: self._domains(ids, own, questions),
            questions=questions,
            vectors=vectors,
            easy=self._easy if self.config.rubric is not None else None,
        )

    def _domains(self, ids: Sequence[str], own: Mapping[str, str], questions: Any) -> dict[str, str]:
        config = self.config
        subjects = read_subjects(Path(config.subjects)) if config.subjects else SUBJECTS
        if config.domains == "auto":
            # Labels that are for the page only are not worth a package, or the time.
            labelled = all(own[name] for name in ids) or config.method not in BY_DOMAIN
            self.labels_by = "own" if labelled else "clusters"
        if self.labels_by == "llm":
            assert config.labeller is not None  # a validator of the settings
            problems = self._read(set(ids))
            found = label(
                problems, subjects, self._desk("labeller", config.labeller).ask, progress=self.ctx.progress
            )
            self._stop_where_it_stopped()
            require_coverage(found, len(problems), least=config.labelled)
            return {name: found.domains.get(name, "(unlabelled)") for name in ids}
        if self.labels_by == "clusters":
            texts = questions(ids)
            return dict(zip(ids, clusters.cluster(texts, clusters=config.clusters, seed=0), strict=True))
        if self.labels_by.startswith("metadata:"):
            return by_field(self._read(set(ids)), self.labels_by.removeprefix("metadata:"))
        if config.subjects:
            require_listed(self._read(set(ids)), subjects)
        return {name: own[name] or OWN_LABEL for name in ids}

    def _easy(self, ids: Sequence[str]) -> list[Drop]:
        settings = self.config.rubric
        assert settings is not None
        problems = self._read(set(ids))
        graded = rubric.grade(problems, self._desk("rubric", settings.judge).ask, progress=self.ctx.progress)
        self._stop_where_it_stopped()
        if graded.ungraded:
            self.notes.append(
                f"the rubric could not grade {len(graded.ungraded):,} of {len(problems):,} problems and"
                " dropped none of those"
            )
        if len(graded.ungraded) == len(problems):
            reason = next(iter(graded.ungraded.values()), "no reply")
            raise UsageError(
                f"rubric: no problem could be graded ({reason}); look at the judge, or leave rubric out"
            )
        return rubric.easy(
            graded.grades,
            least_steps=settings.least_steps,
            least_level=settings.least_level,
            recall=settings.recall,
        )

    def _stop_where_it_stopped(self) -> None:
        """Raise what ended the asking early: a choice by half of the replies is another choice."""
        for desk in self.desks.values():
            if desk.error is not None:
                raise desk.error

    def _desk(self, name: str, settings: Any) -> JudgeDesk:
        self.desks[name] = JudgeDesk(judge_teacher(settings), self.ctx.ledger_path, self.ctx.progress)
        return self.desks[name]

    def _read(self, ids: set[str]) -> list[Problem]:
        return [p for path in self.problems for p in iter_records(path, Problem) if p.id in ids]

    def asked(self) -> dict[str, Any]:
        """What models were asked, and what that cost."""
        return {name: desk.metrics() for name, desk in self.desks.items()}

    def write(self, found: Chosen, looks: Sequence[ProblemLook], rules: Rules) -> dict[str, Any]:
        """Write what was chosen and why not the rest; gives the document of the page."""
        outputs = self.ctx.outputs
        drops, kept = shown_drops(found.drops), shown_records(found.traces)
        shown, texts = {drop.record_id for drop in drops} | set(kept), {}
        known = {p.id: p for p in self._read({*found.problems, *(drop.problem_id for drop in drops)})}
        owner: dict[str, str] = {}

        def pool() -> Iterator[Trace]:
            """All traces; what is shown of some is noted as they pass."""
            for path in self.traces:
                for trace in iter_records(path, Trace):
                    if trace.id in shown:
                        question = known[trace.problem_id].question
                        texts[trace.id] = Texts.of(question, trace.thinking, trace.answer)
                        owner[trace.id] = trace.problem_id
                    yield trace

        chosen = set(found.traces)
        if rules.method == "full":  # as many as there are: never all in memory, so in the order of the file
            write_records(outputs["traces"], (trace for trace in pool() if trace.id in chosen), Trace)
        else:
            read = {trace.id: trace for trace in pool() if trace.id in chosen}
            write_records(outputs["traces"], (read[name] for name in found.traces), Trace)
        write_records(outputs["problems"], (known[name] for name in found.problems), Problem)
        write_drops(outputs["drops"], found.drops)
        lengths = dict(zip(found.traces, found.after, strict=True))
        return {
            "title": f"Curation: {self.ctx.stage}",
            "about": "",
            "source": {
                "name": ", ".join(path.stem for path in self.traces),
                "traces": len(found.traces) + len(found.drops),
                "problems": len(looks),
            },
            "method": rules.method,
            "seed": rules.seed,
            "target": rules.target,
            "kept": {"traces": len(found.traces), "problems": len(found.problems)},
            "notes": found.notes,
            "funnel": found.rows,
            "samples": sample_rows(drops, texts),
            "kept_samples": [
                {
                    "record_id": name,
                    "problem_id": owner[name],
                    "domain": found.domains[owner[name]],
                    "length": lengths[name],
                    "question": texts[name].question,
                    "text": texts[name].text,
                }
                for name in kept
            ],
            "domains": shares(found.domains, found.problems),
            "lengths": histogram(found.before, found.after, found.unit),
            "benchmarks": [each.as_json() for each in self.benchmarks],
            "detectors": self._detectors(looks),
            "settings": {**self.config.model_dump(mode="json"), "domains_by": self.labels_by},
            "versions": {"tutelage": tutelage.__version__},
        }

    def _detectors(self, looks: Sequence[ProblemLook]) -> list[dict[str, Any]]:
        """Hits of every detector on the questions, and how many questions are too short for it."""
        if self.against is None:
            return []
        return [
            {
                "detector": name,
                "hits": sum(any(h.detector == name and not h.partial for h in look.hits) for look in looks),
                "uncheckable": sum(look.words < (1 if name == DETECTOR else width(name)) for look in looks),
            }
            for name in (*self.against.detectors, *([DETECTOR] if self.config.meaning else []))
        ]
