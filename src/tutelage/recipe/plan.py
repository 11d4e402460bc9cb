"""From a checked recipe to jobs in the order in which they can run.

Promises: every input of every job is either another job's output or an existing file; a missing stage or
output, an output of the wrong type, or a circle is one UsageError with the nearest name; the order depends
only on the recipe. Does not: look into the run folder or start anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tutelage.errors import UsageError
from tutelage.recipe.document import Place, nearest
from tutelage.recipe.held_out import refuse_chosen_on
from tutelage.recipe.load import FILE_PREFIX, Recipe, path_of
from tutelage.recipe.stage import InputPath, InputRef, Marked, Output, StageConfig, StageKind, marked

RESERVED = {"recipe.yaml", "manifest.json", "ledger.sqlite", "log.txt", ".lock"}


@dataclass(frozen=True)
class Need:
    """One input of a job. `job` is the id of the job that makes it, or "" for a file of the user; `path`
    is relative to the run folder, or absolute for a file of the user."""

    field: str
    key: str
    place: Place
    stage: str
    output: str
    seed: int | None
    job: str
    path: str


@dataclass(frozen=True)
class Job:
    """One piece of work: a stage, for one seed where the stage is per seed. `outputs` by name, relative to
    the run folder. `files` are the user's local files named in the settings, with the place of the
    setting."""

    id: str
    stage: str
    seed: int | None
    kind: StageKind
    config: StageConfig
    needs: tuple[Need, ...]
    files: tuple[tuple[Place, Path], ...]
    outputs: tuple[tuple[str, str], ...]
    expected_s: float
    others: frozenset[str] = frozenset()

    @property
    def after(self) -> frozenset[str]:
        """Ids of the jobs that must be finished first: those it needs, and `others`: for a kind that
        `sees_run`, all jobs of kinds that do not (what it shows would depend on the moment otherwise)."""
        return self.others | {need.job for need in self.needs if need.job}


def job_id(stage: str, seed: int | None) -> str:
    """`arm`, or `arm-seed0` for a per-seed stage."""
    return stage if seed is None else f"{stage}-seed{seed}"


def plan_jobs(recipe: Recipe, only: Sequence[str] | None = None) -> tuple[Job, ...]:
    """The jobs of `recipe`, each after all that it needs; with `only`, these stages and what they need.

    Raises UsageError as promised above."""
    links = {stage: list(_links(recipe, stage)) for stage in recipe.stages}
    order = _ordered(recipe, links)
    if only is not None:
        for stage in only:
            if stage not in recipe.stages:
                raise UsageError(
                    f"{recipe.document.source}: no stage {stage!r}{nearest(stage, recipe.stages)}"
                )
        order = [stage for stage in order if stage in _needed(only, links)]
    jobs = [job for stage in order for job in _jobs(recipe, stage, links[stage])]
    _refuse_shared_outputs(recipe, jobs)
    refuse_chosen_on(recipe)
    plain = frozenset(job.id for job in jobs if not job.kind.sees_run)
    return tuple(replace(job, others=plain) if job.kind.sees_run else job for job in _seeing_last(jobs))


def _seeing_last(jobs: Sequence[Job]) -> list[Job]:
    """Jobs that see the whole run come last, in the order they have among themselves."""
    return sorted(jobs, key=lambda job: job.kind.sees_run)


@dataclass(frozen=True)
class _Link:
    """A reference of one stage: `stage` is "" for a file."""

    mark: Marked
    stage: str
    output: Output | None


def _links(recipe: Recipe, stage: str) -> Iterator[_Link]:
    for mark in marked(recipe.stages[stage]):
        if isinstance(mark.marker, InputPath):
            continue
        where = recipe.document.where(("stages", stage, *mark.place))
        if mark.value.startswith(FILE_PREFIX):
            yield _Link(mark, "", None)
            continue
        name, _, output_name = mark.value.partition(".")
        if name not in recipe.stages:
            raise UsageError(f"{where}: no stage {name!r}{nearest(name, recipe.stages)}")
        kind = recipe.kind(name)
        output = kind.output(output_name)
        if output is None:
            known = [each.name for each in kind.outputs]
            what = f"no output {output_name!r}{nearest(output_name, known)}" if known else "no output"
            raise UsageError(f"{where}: stage {name!r} has {what}")
        if kind.sees_run and not recipe.kind(stage).sees_run:
            raise UsageError(f"{where}: stage {name!r} is made last and cannot be an input of this one")
        yield _Link(mark, name, _typed(mark.marker, output, mark.value, where))


def _typed(marker: InputRef, output: Output, value: str, where: str) -> Output:
    if marker.types and output.type and output.type not in marker.types:
        wanted = " or ".join(marker.types)
        raise UsageError(f"{where}: {value} gives {output.type}, this key wants {wanted}")
    return output


def _ordered(recipe: Recipe, links: dict[str, list[_Link]]) -> list[str]:
    """Stages in the order of the recipe, moved back only where something they need comes later."""
    order: list[str] = []
    done: set[str] = set()
    for start in recipe.stages:
        path: list[tuple[str, Iterator[_Link]]] = [(start, iter(links[start]))] if start not in done else []
        while path:
            stage, rest = path[-1]
            link = next(rest, None)
            if link is None:
                order.append(stage)
                done.add(stage)
                path.pop()
            elif link.stage and link.stage not in done:
                above = [name for name, _ in path]
                if link.stage in above:
                    circle = " -> ".join([*above[above.index(link.stage) :], link.stage])
                    where = recipe.document.where(("stages", stage, *link.mark.place))
                    raise UsageError(f"{where}: stages need each other in a circle: {circle}")
                path.append((link.stage, iter(links[link.stage])))
    return order


def _needed(only: Iterable[str], links: dict[str, list[_Link]]) -> set[str]:
    found: set[str] = set()
    open_stages = list(only)
    while open_stages:
        stage = open_stages.pop()
        if stage not in found:
            found.add(stage)
            open_stages += [link.stage for link in links[stage] if link.stage]
    return found


def _jobs(recipe: Recipe, stage: str, links: list[_Link]) -> Iterator[Job]:
    kind, config = recipe.kind(stage), recipe.stages[stage]
    files = tuple(
        (mark.place, path)
        for mark in marked(config)
        if isinstance(mark.marker, InputPath) and (path := path_of(mark.value)) is not None
    )
    try:
        expected = max(kind.seconds(config), 0.01)
    except ArithmeticError as error:
        where = recipe.document.where(("stages", stage))
        raise UsageError(f"{where}: these settings give no finite amount of work ({error})") from error
    for seed in recipe.seeds if kind.per_seed else (None,):
        needs = tuple(need for link in links for need in _needs(recipe, link, seed))
        outputs = tuple((output.name, _place(output, stage, seed)) for output in kind.outputs)
        yield Job(job_id(stage, seed), stage, seed, kind, config, needs, files, outputs, expected)


def _needs(recipe: Recipe, link: _Link, seed: int | None) -> Iterator[Need]:
    mark = link.mark
    if link.output is None:
        path = mark.value.removeprefix(FILE_PREFIX)
        yield Need(mark.field, mark.key, mark.place, "", "", None, "", path)
        return
    seeds: Sequence[int | None] = (None,)
    if recipe.kind(link.stage).per_seed:
        seeds = recipe.seeds if seed is None else (seed,)
    for each in seeds:
        path = _place(link.output, link.stage, each)
        name = link.output.name
        yield Need(mark.field, mark.key, mark.place, link.stage, name, each, job_id(link.stage, each), path)


def _place(output: Output, stage: str, seed: int | None) -> str:
    names: dict[str, Any] = {"stage": stage, "seed": seed, "job": job_id(stage, seed)}
    return output.path.format(**names)


def _refuse_shared_outputs(recipe: Recipe, jobs: Sequence[Job]) -> None:
    owners: dict[str, Job] = {}
    ids: set[str] = set()
    for job in jobs:
        where = recipe.document.where(("stages", job.stage))
        if job.id in ids:
            raise UsageError(f"{where}: another stage already has the name {job.id!r}; rename one")
        ids.add(job.id)
        for _, path in job.outputs:
            if path in owners or path in RESERVED:
                owner = f"stage {owners[path].stage!r}" if path in owners else "the run itself"
                raise UsageError(f"{where}: writes {path}, which belongs to {owner}; keep one of them")
            owners[path] = job
