"""Settings of the stages that choose: `curate`, and `plurality` for questions without answers.

Promises: importing it loads no heavy library; every setting is used by the stage that has it.
Does not: choose (see `recipe.jobs.curating` and the room `curate`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tutelage.recipe.stage import InputPath, LocalOrHub, LocalOrName, Output, Settings, StageConfig, StageKind
from tutelage.recipe.teachers import EndpointTeacher
from tutelage.recipe.training import Count, Positive, Problems, Share, Traces, Verdicts

TextFile = Annotated[str, InputPath()]
Part = Annotated[float, Field(gt=0, le=1)]


class Thresholds(Settings):
    """From where on detectors count (see `curate.detectors.Thresholds`)."""

    partial: Part = 0.2
    overlap: Part = 0.4
    numbers: Part = 0.6
    fuzzy: Part = 0.75


class Rubric(Settings):
    """A language model grades each problem: steps of reasoning, level 1 to 5, recall or not (see
    `curate.rubric`). What has fewer steps, a lower level, or is recall, is dropped."""

    judge: EndpointTeacher
    least_steps: Positive = 2
    least_level: Annotated[int, Field(ge=1, le=5)] = 2
    recall: bool = False


class Meaning(Settings):
    """Benchmark items in other words (see `curate.meaning`): questions that are as near as `least` by `embed`
    (`words`, or a Hugging Face encoder: a folder or Hub name), confirmed by a `judge` (null: the similarity
    alone decides). Which `least` is right hangs on the embedding: see `curate.embeddings`."""

    embed: LocalOrName = "words"
    least: Part = 0.8
    judge: EndpointTeacher | None = None


class Preselect(Settings):
    """Correct records that are taken before any draw: of a source, of a domain, of at least so long a
    thinking (null: any)."""

    source: str | None = None
    domain: str | None = None
    least_length: Positive | None = None


class Curate(StageConfig):
    """From all traces to those that are learned from (see `curate.funnel`), for one seed (`seed` null: the
    recipe's).

    `method`: `s1` (domains alike, long thinking more often), `s1-code` (the same up to 0.7 of the target,
    then by the `weights` of domains), or what they are compared with: `random`, `diverse` (domains alike),
    `longest`, `full`, `facility` (facility location over word statistics), `long-short` (`long` to `short`,
    cut at `border`). `target` counts problems (null: all). Solvers count for the s1 methods alone.

    `quality` are settings of `curate.quality.Settings` that are other than usual. `benchmarks` are problems
    of other stages, `against` files or `hub:owner/name`, `against_column` their question column; `detectors`,
    `thresholds`, `boilerplate` and `allow` (a file of lines) are those of `curate.detectors`; `meaning`
    then looks at the questions that are left. `near`: Jaccard similarity from which questions are duplicates
    (null: equal ones only); of two the one of the source that stands first in `order` stays.

    `solvers` names verdicts on attempts of solver models; `solved`: drop what any of them solves
    (`unsolved`), or keep pass rates from `low` to `high`, or of each solver by `bands`. `missing`: problems
    that a solver did not attempt; `hopeless`: solvers that solve nothing.

    `domains`: the problems' `own`, `clusters` by their words, `llm` (asked of `labeller`, by the list
    `subjects`, null: MSC 2020), `metadata:NAME` (a field of the problems' metadata), or `auto`: own where
    every problem has one, else clusters where the method goes by domains.

    `keep`, `prefer` and `per_problem` choose among the traces of a problem; `first` are records that are
    taken before any draw."""

    kind: Literal["curate"]
    problems: Annotated[tuple[Problems, ...], Field(min_length=1)]
    traces: Annotated[tuple[Traces, ...], Field(min_length=1)]
    verdicts: tuple[Verdicts, ...] = ()
    method: Literal["s1", "s1-code", "random", "diverse", "longest", "full", "facility", "long-short"] = "s1"
    target: Positive | None = None
    seed: Count | None = None
    quality: Mapping[str, bool | int | float | tuple[str, ...] | None] = {}
    benchmarks: tuple[Problems, ...] = ()
    against: tuple[LocalOrHub, ...] = ()
    against_column: str | None = None
    detectors: tuple[str, ...] = ("exact", "ngram-13", "overlap", "numbers", "fuzzy")
    thresholds: Thresholds = Thresholds()
    boilerplate: Annotated[int, Field(ge=2)] | None = 10
    allow: TextFile | None = None
    meaning: Meaning | None = None
    near: Part | None = 0.8
    order: tuple[str, ...] = ()
    solvers: Mapping[str, Verdicts] = {}
    solved: Literal["unsolved", "band"] = "unsolved"
    low: Share = 0.0
    high: Share = 1.0
    bands: Mapping[str, tuple[Share, Share]] | None = None
    missing: Literal["refuse", "drop", "keep"] = "refuse"
    hopeless: Literal["refuse", "keep"] = "refuse"
    rubric: Rubric | None = None
    domains: Annotated[str, Field(pattern=r"^(auto|own|clusters|llm|metadata:.+)$")] = "auto"
    clusters: Annotated[int, Field(ge=2)] | None = None
    subjects: TextFile | None = None
    labeller: EndpointTeacher | None = None
    labelled: Share = 0.9
    keep: Literal["all", "correct"] = "all"
    prefer: Literal["first", "longest", "shortest", "limo"] = "first"
    per_problem: Positive = 1
    first: tuple[Preselect, ...] = ()
    weights: Mapping[str, Annotated[float, Field(gt=0)]] = {}
    long: Positive = 1
    short: Positive = 4
    border: Positive | None = None
    engine: Literal["local", "ray"] = "local"
    workers: Positive | None = None
    expected_s: float = 5.0

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.meaning is not None and not (self.benchmarks or self.against):
            raise ValueError("meaning looks for items of benchmarks: name some in benchmarks or against")
        if (self.domains == "llm") != (self.labeller is not None):
            raise ValueError("domains: llm and labeller go together: who labels, and that it does")
        if self.subjects is not None and self.domains not in ("llm", "own"):
            raise ValueError("subjects is for domains: llm, or to check domains: own")
        if (self.method == "s1-code") != bool(self.weights):
            raise ValueError(
                "method: s1-code and weights go together: how often each domain is drawn at the end"
            )
        if self.method not in ("s1", "s1-code") and self.first:
            raise ValueError("first is for the methods s1 and s1-code")
        if self.low > self.high:
            raise ValueError(f"low is {self.low:g}, more than high ({self.high:g})")
        return self


class Plurality(StageConfig):
    """Questions whose gold answer is the one that most of several independent traces give (see
    `curate.plurality`; Phi-4 technical report, section 2.2). Dropped: where `most_share` or more agree, where
    fewer than `least_share` or `least_votes` do, and ties. `replace`: also where a gold answer is known."""

    kind: Literal["plurality"]
    problems: Problems
    traces: Annotated[tuple[Traces, ...], Field(min_length=1)]
    least_votes: Positive = 3
    least_share: Share = 0.5
    most_share: Share = 1.0
    replace: bool = False


_JOBS = "tutelage.recipe.jobs"
CURATION: tuple[StageKind, ...] = (
    StageKind(
        "curate",
        Curate,
        f"{_JOBS}.curating:curate",
        (
            Output("traces", "data/{job}.traces.parquet", "traces"),
            Output("problems", "data/{job}.problems.parquet", "problems"),
            Output("drops", "data/{job}.drops.parquet", "drops"),
            Output("curation", "metrics/{job}.json"),
            Output("page", "metrics/{job}.html"),
        ),
        per_seed=True,
        expected_s=lambda config: config.expected_s,
    ),
    StageKind(
        "plurality",
        Plurality,
        f"{_JOBS}.voting:vote_for_gold",
        (
            Output("problems", "data/{stage}.problems.parquet", "problems"),
            Output("drops", "data/{stage}.drops.parquet", "drops"),
        ),
        expected_s=3.0,
    ),
)
