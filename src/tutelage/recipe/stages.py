"""Every kind of stage a recipe may use: its settings, its outputs, and the function that does the work.

This is the one place that knows every room. Promises: importing it loads no heavy library (the functions are
named as text); every setting below is used by the stage that has it.
Does not: hold a stage's logic (see `recipe.jobs`, and the rooms it calls).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from tutelage.recipe.curation import CURATION
from tutelage.recipe.decoding import Policy, Sampling
from tutelage.recipe.depths import DEPTHS
from tutelage.recipe.healing import HEALING
from tutelage.recipe.stage import InputRef, Output, Settings, StageConfig, StageKind
from tutelage.recipe.starts import STARTS
from tutelage.recipe.teachers import EndpointTeacher, Teacher
from tutelage.recipe.training import TRAINING, Count, Model, Positive, Problems, Traces

Evaluated = Annotated[str, InputRef("evaluation")]
Some = Field(min_length=1)


class Retry(Settings):
    """Which traces are bought again (`where`, such as finish_reason=length; see `teachers.retry`), and the
    settings of the teacher that are other ones then (`set`, such as max_tokens: 32768)."""

    where: str
    set: Mapping[str, Any] = {}


class Collect(StageConfig):
    """Traces from a teacher, through the ledger.

    `retry` buys chosen traces again; the old ones stay, superseded. It chooses among the traces of this stage
    or, instead of collecting anew, among `earlier` ones. `pilot` rows are bought and judged before the
    rest, to see what it will cost; `pilot_only` stops there. `engine: ray` shares the work between `workers`
    processes of a Ray cluster; a pilot and what is bought again stay in this process."""

    kind: Literal["collect"]
    problems: Problems
    teacher: Teacher
    samples: Positive = 1
    earlier: Traces | None = None
    retry: Retry | None = None
    pilot: Annotated[int, Field(ge=0)] = 0
    pilot_only: bool = False
    engine: Literal["local", "ray"] = "local"
    workers: Positive = 2

    @model_validator(mode="after")
    def _retry_fits(self) -> Self:
        self.again()
        return self

    def again(self) -> Teacher:
        """The teacher with the settings of `retry`. Raises ValueError for settings that it does not have."""
        if self.retry is None or not self.retry.set:
            return self.teacher
        merged = _merged(self.teacher.model_dump(mode="json"), self.retry.set)
        try:
            return type(self.teacher).model_validate_json(json.dumps(merged), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"retry.set.{place}: {first['msg'].lower()}") from error


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with the values of `above`, block by block."""
    both = {key: _merged(below[key], above[key]) for key in above if _blocks(below.get(key), above[key])}
    return {**below, **above, **both}


def _blocks(one: Any, other: Any) -> bool:
    return isinstance(one, Mapping) and isinstance(other, Mapping)


class Verify(StageConfig):
    """A verdict on every trace; `seconds` bounds one verdict, `workers` is how many are judged at once (null:
    the recipe's threads), `engine: ray` judges on a Ray cluster. `tolerance` (relative) is for numbers of
    problems that set none. `allow_weaker_sandbox` is for programs, where bubblewrap cannot run. A `judge` is
    asked about what the rules left undecided, with `second_look` also about what they rejected; with
    `agreement` about everything, for the table of rule, second parser and judge."""

    kind: Literal["verify"]
    problems: Problems
    traces: Traces
    seconds: float = Field(default=4.0, gt=0)
    workers: Positive | None = None
    engine: Literal["local", "ray"] = "local"
    tolerance: float | None = Field(default=None, ge=0)
    allow_weaker_sandbox: bool = False
    judge: EndpointTeacher | None = None
    second_look: bool = False
    agreement: bool = False


class Evaluate(StageConfig):
    """Accuracy of one arm: `samples` replies per problem under a policy, judged by the problems' checkers.
    `thinking: false` asks the student without thinking markers, whatever its template says. Problems that a
    checkpoint of the model was chosen on are refused; `allow_chosen_on` measures them all the same, and the
    report says so beside the number."""

    kind: Literal["evaluate"]
    arm: str
    model: Model
    problems: Problems
    policy: Policy = Policy()
    sampling: Sampling = Sampling()
    thinking: bool = True
    system: str | None = None
    samples: Positive = 1
    max_answer_tokens: Positive = 64
    max_batch: Positive = 64
    bf16: bool = False
    allow_chosen_on: bool = False
    expected_s: float = 10.0


class Sweep(StageConfig):
    """Accuracy against thinking for one arm: unforced, `budgets` (maxima), `waits` (numbers of refused
    closes; 0 is the unforced point) and `minimums` with each of `wait_strings` (null: closes are masked),
    majority `votes`, and other `methods` by name (see `measure.ways`). Of a recurrent-depth model also
    `num_steps` (passes of its core) and `exits` (rules to stop, see `think.effort`); `continuous` measures
    both a second time with continuous thought. All other points have `depth` passes (null: the model's mean),
    which also bounds the exits.

    Every point takes `samples` replies at `temperature` (0: greedy). Votes are taken among `vote_samples`
    unforced replies at `vote_temperature`; null: the points' own. `targets` are accuracies whose tokens are
    looked for. `max_thinking` bounds the unforced model; `close` and `grace_tokens` say how a budget closes
    (see `think.policy`). `allow_chosen_on` is that of `evaluate`."""

    kind: Literal["sweep"]
    arm: str
    model: Model
    problems: Problems
    budgets: tuple[Count, ...] = ()
    waits: tuple[Count, ...] = ()
    minimums: tuple[Count, ...] = ()
    wait_strings: tuple[str | None, ...] = ("Wait",)
    samples: Positive = 1
    temperature: float = Field(default=0.0, ge=0)
    votes: tuple[Positive, ...] = ()
    vote_samples: Positive | None = None
    vote_temperature: float | None = Field(default=None, gt=0)
    methods: tuple[str, ...] = ()
    num_steps: tuple[Positive, ...] = ()
    exits: tuple[str, ...] = ()
    continuous: bool = False
    depth: Positive | None = None
    targets: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.5,)
    max_thinking: Positive | None = None
    close: str = "hard"
    grace_tokens: Count = 0
    close_text: str = ""
    max_answer_tokens: Positive = 64
    max_batch: Positive = 64
    bf16: bool = False
    allow_chosen_on: bool = False
    expected_s: float = 60.0


class Compare(StageConfig):
    """Paired differences between evaluated arms: each of `pairs` is (a, b), reported as a minus b."""

    kind: Literal["compare"]
    evaluations: Mapping[str, Evaluated]
    pairs: tuple[tuple[str, str], ...]


class Against(Settings):
    """Accuracy against a number, such as how many traces were learned from: `axis` names the number, `lines`
    the lines, each of them arms with their numbers. `logarithmic`: the axis doubles."""

    axis: str
    lines: Annotated[Mapping[str, Annotated[Mapping[str, float], Some]], Some]
    logarithmic: bool = False


class Report(StageConfig):
    """The page and summary.json. `show` problems go into the reader of traces. `ladders` (a title, and arms
    in order) show the accuracy after each stage, `against` accuracy against a number; both name
    `evaluations`."""

    kind: Literal["report"]
    problems: Problems
    evaluations: Mapping[str, Evaluated]
    sweeps: tuple[Annotated[str, InputRef("curve")], ...] = ()
    depths: tuple[Annotated[str, InputRef("depths")], ...] = ()
    comparisons: Annotated[str, InputRef("comparisons")] | None = None
    show: Positive = 40
    ladders: Mapping[str, Annotated[tuple[str, ...], Some]] = {}
    against: Mapping[str, Against] = {}

    @model_validator(mode="after")
    def _arms_are_evaluated(self) -> Self:
        named = {f"ladders.{title}": arms for title, arms in self.ladders.items()}
        for title, plot in self.against.items():
            named |= {f"against.{title}.lines.{line}": tuple(arms) for line, arms in plot.lines.items()}
            if plot.logarithmic and any(x <= 0 for arms in plot.lines.values() for x in arms.values()):
                raise ValueError(f"against.{title}: a logarithmic axis takes numbers above 0 only")
        for place, arms in named.items():
            for arm in arms:
                if arm not in self.evaluations:
                    raise ValueError(f"{place}: {arm!r} is not among the evaluations")
        return self


_JOBS = "tutelage.recipe.jobs"
KINDS: dict[str, StageKind] = {
    kind.name: kind
    for kind in (
        *STARTS,
        StageKind(
            "collect",
            Collect,
            f"{_JOBS}.collecting:collect_traces",
            (Output("traces", "data/{stage}.traces.parquet", "traces"),),
            expected_s=3.0,
        ),
        StageKind(
            "verify",
            Verify,
            f"{_JOBS}.judging:verify_traces",
            (Output("verdicts", "data/{stage}.verdicts.parquet", "verdicts"),),
            expected_s=2.0,
            version=3,
        ),
        *CURATION,
        *HEALING,
        *TRAINING,
        StageKind(
            "evaluate",
            Evaluate,
            f"{_JOBS}.measuring:evaluate_arm",
            (Output("evaluation", "metrics/{job}", "evaluation"),),
            per_seed=True,
            expected_s=lambda config: config.expected_s,
            version=3,
        ),
        StageKind(
            "sweep",
            Sweep,
            f"{_JOBS}.sweeping:sweep_arm",
            (Output("curve", "metrics/{job}", "curve"),),
            per_seed=True,
            expected_s=lambda config: config.expected_s,
            version=4,
        ),
        DEPTHS,
        StageKind(
            "compare",
            Compare,
            f"{_JOBS}.measuring:compare_arms",
            (Output("comparisons", "metrics/{stage}.json", "comparisons"),),
        ),
        StageKind(
            "report",
            Report,
            f"{_JOBS}.reporting:report",
            (Output("page", "report.html"), Output("summary", "metrics/summary.json")),
            sees_run=True,
            expected_s=2.0,
            version=2,
        ),
    )
}
