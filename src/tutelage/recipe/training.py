"""Settings of the stages that train, and of those that make their data.

Promises: importing it loads no heavy library; every setting is used by the stage that has it.
Does not: train (see `recipe.jobs` and the room `train`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tutelage.recipe.decoding import Policy, Sampling
from tutelage.recipe.stage import InputPath, InputRef, LocalOrName, Output, Settings, StageConfig, StageKind
from tutelage.recipe.teachers import EndpointTeacher

Problems = Annotated[str, InputRef("problems")]
Traces = Annotated[str, InputRef("traces")]
Verdicts = Annotated[str, InputRef("verdicts")]
Model = Annotated[str, InputRef("model")]
LaunchFile = Annotated[str, InputPath()]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Above = Annotated[float, Field(gt=0)]


class Lora(Settings):
    """Low-rank adaptation."""

    rank: Positive = 16
    alpha: Positive = 32
    dropout: Share = 0.0


class Depth(Settings):
    """How deep a recurrent student goes in training. `drawn`: around its mean, else at it. With `start`
    the mean grows from there to the model's own over the first share `over` of the steps: `linear`, or slowly
    first (`1-sqrt`)."""

    drawn: bool = True
    start: Annotated[float, Field(ge=1)] | None = None
    over: Annotated[float, Field(gt=0, le=1)] = 0.25
    shape: Literal["linear", "1-sqrt"] = "linear"


class Lengths(Settings):
    """Short examples first: those of size `start` and less at first, all of them after the share `over` of
    the steps. The size is the number of `steps` in a problem's metadata, or the example's `tokens`."""

    start: Above
    over: Annotated[float, Field(gt=0, le=1)] = 0.45
    shape: Literal["linear", "1-sqrt"] = "linear"
    by: Literal["steps", "tokens"] = "steps"


class Validate(Settings):
    """Accuracy on held-out `problems` (the first `limit` of them, one reply each) every so many steps.
    `patience` checks without a new best end the stage; `choose: best` keeps the weights of the best check.
    What is chosen on is remembered with the model: measuring it on the same problems is refused later."""

    problems: Problems
    every: Positive
    limit: Positive = 200
    patience: Positive | None = None
    choose: Literal["last", "best"] = "last"
    policy: Policy = Policy()
    sampling: Sampling = Sampling()
    max_answer_tokens: Positive = 64
    max_batch: Positive = 64


def _rate(plain: float) -> Any:
    """A learning rate of `plain` by default, with an adapter ten times that (TRL's advice on LoRA)."""
    return Field(gt=0, default_factory=lambda told: 10 * plain if told.get("lora") else plain)


def _warm_up(usual: int) -> Any:
    """`usual` steps of warm-up by default, and never more than half of the steps."""
    return Field(ge=0, default_factory=lambda told: min(usual, told.get("steps", usual * 2) // 2))


class Training(StageConfig):
    """What every stage that trains `model` has. `batch` samples a step go through the model in `accumulate`
    parts. `save_every` steps are between two checkpoints (null: a tenth of the run). `trackers` names
    services that metrics are sent to (TRL's report_to); none by itself. The learning rate is one for real
    students (ten times that with `lora`); the lab's wants 3e-3. `optimiser: muon` moves the matrices of the
    layers at `muon_learning_rate`, and embedding, head, norms and biases by AdamW at `learning_rate`."""

    model: Model
    steps: Positive
    batch: Positive = 32
    accumulate: Positive = 1
    lora: Lora | None = None
    optimiser: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = _rate(1e-5)
    muon_learning_rate: Above = 1e-3
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = _warm_up(50)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.98
    max_grad_norm: Above = 1.0
    bf16: bool = False
    checkpointing: bool = False
    save_every: Positive | None = None
    trackers: tuple[str, ...] = ()
    validate_on: Validate | None = None
    expected_s: float = 30.0


class Mix(Settings):
    """Shares of long and short traces (by thinking tokens, cut at `border`; null: the median): 1:4 is
    `long: 1, short: 4` (arXiv 2502.12143, for students of 3B or less)."""

    long: Positive = 1
    short: Positive = 4
    border: Positive | None = None


class TraceChoice(StageConfig):
    """Which traces, and how they are put to a model: of each problem the first `calls` samples, of those the
    first `per_problem` that pass `keep` (`faithful`: correct, and unchanged by the tokenizer); `prefer` takes
    the longest or shortest of those that pass, or the best by LIMO's score, instead of the first; `first`
    problems only (sample efficiency; null: all); target `answer` drops the thinking, `mixed` that of every
    other trace. Without traces the gold answers are taken, written as `answer`.

    `system`: the system message: `reasoning` (one fixed message, as Phi-4-reasoning has; needs a chat
    template), `own` (the model's), `none`, or a text. A model that is trained keeps it."""

    problems: tuple[Problems, ...]
    traces: tuple[Traces, ...] = ()
    verdicts: tuple[Verdicts, ...] = ()
    keep: Literal["all", "correct", "faithful"] = "all"
    calls: Positive | None = None
    per_problem: Positive = 1
    prefer: Literal["first", "longest", "shortest", "limo"] = "first"
    first: Positive | None = None
    mix: Mix | None = None
    target: Literal["thinking", "answer", "mixed"] = "thinking"
    answer: str = "The answer is {gold}."
    system: str = "reasoning"
    max_length: Positive = 1024
    too_long: Literal["refuse", "drop"] = "refuse"


class TraceData(TraceChoice, Training):
    """Training on traces. `chat_template: any` goes on although the tokenizer's chat template would lose the
    thinking of a whole conversation. `depth` is for a recurrent student (null: depths are drawn around its
    mean)."""

    chat_template: Literal["faithful", "any"] = "faithful"
    depth: Depth | None = None


class Sft(TraceData):
    """Supervised fine-tuning, one trace a row, loss on thinking, answer and end of turn; `loss_on: prefixes`
    also learns, while a question is being read, the answers that its problem says are already decided there
    (metadata `prefix_answers`, see `train.examples`). `launch` is an accelerate configuration file: the
    stage then runs in the processes that it names (null: in one). `lengths`: short examples first (null: all
    from the first step on)."""

    kind: Literal["sft"]
    loss_on: Literal["reply", "prefixes"] = "reply"
    lengths: Lengths | None = None
    launch: LaunchFile | None = None


class MidTrain(TraceData):
    """Mid-training: next-token training on many traces packed into rows of `max_length` tokens (best fit; no
    trace sees its neighbours, none is cut). `batch` counts packed rows. `loss_on: document` also learns the
    prompts; `reply` (default) masks them, since a drawn question carries nothing that can be learned.
    `launch` as for `sft`."""

    kind: Literal["mid-train"]
    launch: LaunchFile | None = None
    loss_on: Literal["reply", "document"] = "reply"
    per_problem: Positive = 8


class Score(TraceChoice):
    """A teacher's log-probabilities on traces: at every place of the reply the best `top_k` ids, and what is
    left over. `model` is the teacher; the student of `distill` must have the same tokenizer. `bf16` loads the
    teacher in half the memory."""

    kind: Literal["score"]
    model: Model
    traces: tuple[Traces, ...]
    system: str = "own"
    top_k: Positive = 16
    batch: Positive = 16
    bf16: bool = False
    expected_s: float = 20.0


class Distill(TraceData):
    """Distribution distillation: the student learns the teacher's distribution at every place of a reply.

    `scores` are saved log-probabilities; `teacher` is a live model (exactly one of the two). `beta` 0 is
    forward KL, 1 reverse KL, between them the generalised Jensen-Shannon divergence. `on_policy` is the share
    of micro-batches that the student writes itself (needs `teacher`). `aligned: true` is for a teacher with
    another tokenizer; `numbers: any` goes on although the two split numbers differently. `lengths` as for
    `sft`."""

    kind: Literal["distill"]
    lengths: Lengths | None = None
    teacher: Model | None = None
    scores: Annotated[str, InputRef("scores")] | None = None
    beta: Share = 0.0
    temperature: Above = 1.0
    on_policy: Share = 0.0
    max_new_tokens: Positive = 512
    aligned: bool = False
    numbers: Literal["alike", "any"] = "alike"

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.teacher is None) == (self.scores is None):
            raise ValueError("give exactly one of teacher and scores")
        if self.teacher is None and (self.on_policy or self.aligned):
            raise ValueError("on_policy and aligned need a live teacher")
        return self


class Rollouts(StageConfig):
    """Replies of a student to problems, by the project's engine, judged by the problems' checkers, with their
    ids."""

    kind: Literal["rollouts"]
    model: Model
    problems: Problems
    samples: Positive = 8
    first: Positive | None = None
    policy: Policy = Policy()
    sampling: Sampling = Sampling(temperature=1.0)
    max_answer_tokens: Positive = 64
    max_batch: Positive = 64
    bf16: bool = False
    expected_s: float = 30.0


_OF_METHOD = {
    "rollout": ("truncated", "length_ratio"),
    "judge": ("by", "replies", "both_orders"),
    "pivotal": (
        "attempts", "gap", "band", "estimate", "confirm", "policy", "sampling", "max_answer_tokens",
        "max_batch",
    ),
}  # fmt: skip
"""Settings of `Pairs` that only one method uses."""


class Pairs(StageConfig):
    """Preference pairs (chosen, rejected).

    `method: rollout` pairs correct with incorrect rollouts of one problem; `truncated: rejected` takes those
    that the token limit cut off as incorrect, and `length_ratio` bounds how much longer one side of a pair
    may be than the other. `judge` lets an LLM mark `replies` rollouts of a problem for accuracy, style and
    detail, and compares them `by` accuracy or overall (Phi-4's second round); with `both_orders` it is asked
    twice and must agree. `pivotal` searches the single tokens at which the probability of success changes by
    `gap` (Phi-4 §4.3), in `attempts` rollouts of a problem; it needs `model`, and uses `estimate`
    continuations to search and `confirm` fresh ones to confirm, on problems that succeed with a share within
    `band`. `limit`: of the problems with rollouts the first so many only."""

    kind: Literal["pairs"]
    problems: Problems
    rollouts: Annotated[str, InputRef("rollouts")]
    method: Literal["rollout", "judge", "pivotal"] = "rollout"
    per_problem: Positive = 4
    truncated: Literal["drop", "rejected"] = "drop"
    length_ratio: Annotated[float, Field(ge=1)] | None = None
    judge: EndpointTeacher | None = None
    by: Literal["accuracy", "overall"] = "overall"
    replies: Annotated[int, Field(ge=2)] = 4
    both_orders: bool = False
    model: Model | None = None
    attempts: Positive = 2
    gap: Annotated[float, Field(gt=0, lt=1)] = 0.2
    band: tuple[Share, Share] = (0.2, 0.8)
    estimate: Positive = 32
    confirm: Annotated[int, Field(ge=64)] = 64
    limit: Positive | None = None
    policy: Policy = Policy()
    sampling: Sampling = Sampling(temperature=1.0)
    max_answer_tokens: Positive = 64
    max_batch: Positive = 64
    expected_s: float = 20.0

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        if (self.method == "judge") != (self.judge is not None):
            raise ValueError("judge (the LLM) belongs to method: judge, and to no other")
        if (self.method == "pivotal") != (self.model is not None):
            raise ValueError("model belongs to method: pivotal, and to no other")
        for method, names in _OF_METHOD.items():
            for name in names if method != self.method else ():
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} belongs to method: {method}; this stage has {self.method}")
        return self


class Dpo(Training):
    """Direct preference optimisation (Rafailov et al. 2023) on pairs; the reference is the model that it
    starts from. `robust` needs `label_smoothing`, the share of pairs thought to be the wrong way round."""

    kind: Literal["dpo"]
    pairs: tuple[Annotated[str, InputRef("pairs")], ...]
    beta: Above = 0.1
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    max_length: Positive = 1024
    too_long: Literal["refuse", "drop"] = "refuse"
    learning_rate: float = _rate(5e-7)


class Reward(Settings):
    """What a rollout earns, as a weighted sum. `correct`: +1 or -1. `plus`: the reward of
    Phi-4-reasoning-plus (length-aware, with its repetition term, 8:1). `format`: 1 for a well-formed reply.
    `overlong`: 0 down to -1 over the last `overlong_cache` tokens before `max_tokens` (DAPO). `user`:
    `file.py:function`, a checker of yours."""

    correct: float = 1.0
    plus: float = 0.0
    format: float = 0.0
    overlong: float = 0.0
    overlong_cache: Positive | None = None
    max_tokens: Positive | None = None
    user: LocalOrName | None = None
    user_weight: float = 1.0
    seconds: Above = 10.0


class Rl(Training):
    """What both ways of reinforcement learning share. A step takes `batch` / `group` problems with `group`
    replies each.

    `anneal_to` is the temperature reached, linearly, after half of the steps (null: it stays at
    `sampling.temperature`)."""

    problems: Problems
    group: Annotated[int, Field(ge=2)] = 8
    reward: Reward = Reward()
    policy: Policy = Policy()
    sampling: Sampling = Sampling(temperature=1.0)
    anneal_to: Annotated[float, Field(gt=0)] | None = 0.6
    max_answer_tokens: Positive = 64
    max_batch: Positive = 64
    clip_low: Above = 0.2
    clip_high: Above = 0.2
    learning_rate: float = _rate(1e-6)
    schedule: Literal["cosine", "linear", "constant"] = "constant"
    warmup_steps: int = _warm_up(10)


class Grpo(Rl):
    """Group-relative policy optimisation on verifiable rewards.

    `oversample` is the most replies drawn for one problem while its group lacks rights or wrongs; with
    `balance` a group holds its right replies and equally many wrong ones; problems whose share of right
    replies exceeds `drop_above` or whose replies all earn the same are left out and others drawn, until
    `tries` times as many as are needed were looked at in this step.
    `uniform_length` keeps the problems whose replies vary least in length (this share of them; 1: all).
    `kl` weighs the divergence from the start model; `mask_truncated` learns nothing from replies that a limit
    cut off; `reuse` is the steps taken with one set of replies (the clips do nothing at 1)."""

    kind: Literal["grpo"]
    loss: Literal["grpo", "dr_grpo", "dapo"] = "dapo"
    kl: Annotated[float, Field(ge=0)] = 0.0
    oversample: Positive = 32
    balance: bool = True
    drop_above: Share = 0.5
    tries: Positive = 4
    uniform_length: Annotated[float, Field(gt=0, le=1)] = 1.0
    mask_truncated: bool = False
    reuse: Positive = 1


class Ppo(Rl):
    """Proximal policy optimisation (Schulman et al. 2017) with a value head and generalised advantage
    estimation; `epochs` passes over each batch of rollouts, `kl` weighs the estimated divergence from the
    start model in the reward."""

    kind: Literal["ppo"]
    epochs: Positive = 2
    minibatch: Positive = 32
    gamma: Share = 1.0
    gae_lambda: Share = 0.95
    value_weight: Annotated[float, Field(ge=0)] = 0.5
    value_clip: Above = 0.2
    value_learning_rate: Above = 1e-4
    kl: Annotated[float, Field(ge=0)] = 0.0


_JOBS = "tutelage.recipe.jobs"
_TRAINED = (Output("model", "models/{job}", "model"), Output("log", "metrics/{job}.jsonl", "log"))


def _kind(name: str, config: type[StageConfig], run: str, outputs: tuple[Output, ...]) -> StageKind:
    return StageKind(
        name,
        config,
        f"{_JOBS}.{run}",
        outputs,
        per_seed=True,
        expected_s=lambda settings: settings.expected_s,
    )


TRAINING: tuple[StageKind, ...] = (
    _kind("mid-train", MidTrain, "training:mid_train", _TRAINED),
    _kind("sft", Sft, "training:sft", _TRAINED),
    _kind("score", Score, "distilling:score", (Output("scores", "data/{job}.scores.parquet", "scores"),)),
    _kind("distill", Distill, "distilling:distill", _TRAINED),
    _kind(
        "rollouts",
        Rollouts,
        "rolling:rollouts",
        (
            Output("rollouts", "data/{job}.rollouts.parquet", "rollouts"),
            Output("traces", "data/{job}.traces.parquet", "traces"),
            Output("verdicts", "data/{job}.verdicts.parquet", "verdicts"),
        ),
    ),
    _kind("pairs", Pairs, "preferring:pairs", (Output("pairs", "data/{job}.pairs.parquet", "pairs"),)),
    _kind("dpo", Dpo, "preferring:dpo", _TRAINED),
    _kind("grpo", Grpo, "reinforcing:grpo", _TRAINED),
    _kind("ppo", Ppo, "rolling:ppo", _TRAINED),
)
