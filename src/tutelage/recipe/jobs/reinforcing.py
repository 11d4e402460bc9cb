"""Jobs of reinforcement learning with verifiable rewards: GRPO, and the rewards that PPO shares.

Promises: checkers and a user's reward are known to work before the first reply is drawn; the metrics say how
many replies were drawn, what was discarded, and how many rewards were late.
Does not: hold a room's logic.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from tutelage.errors import UsageError
from tutelage.recipe.jobs import fitting
from tutelage.recipe.stage import JobContext
from tutelage.recipe.training import Grpo, Reward, Rl
from tutelage.records import Problem, read_records
from tutelage.students.pretrained import Student
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling
from tutelage.train import rewards
from tutelage.train.decoding import Decoding
from tutelage.train.drawing import Grouping
from tutelage.train.grading import Grader, once
from tutelage.train.grpo import train_grpo
from tutelage.train.grpo_rows import GrpoLoss
from tutelage.verify.cascade import check_trace, require_checkers
from tutelage.verify.workers import WorkerPool


def grpo(ctx: JobContext[Grpo]) -> dict[str, Any]:
    """A model reinforced by GRPO, for one seed."""
    config = ctx.config
    problems = read_records(ctx.path("problems"), Problem)
    student = fitting.start(ctx)
    with rewarding(config.reward, decoding(config), student, problems) as grader:
        found = train_grpo(
            student,
            problems,
            grader,
            fitting.optimiser(ctx),
            grouping=Grouping(
                config.group, config.oversample, config.balance, config.drop_above, config.tries
            ),
            loss=GrpoLoss(
                config.loss,
                config.kl,
                config.clip_low,
                config.clip_high,
                config.mask_truncated,
                config.reuse,
            ),
            decoding=decoding(config),
            uniform=config.uniform_length,
            keep=fitting.keep(ctx),
            validation=fitting.validation(ctx),
            progress=ctx.progress,
        )
    # TRL counts prompts and replies that were learned from; what was drawn and left out is in `replies`.
    seen = max((int(row["num_tokens"]) for row in found.fitted.log if "num_tokens" in row), default=0)
    numbers = {**found.totals, "problems_kept": found.problems, "tokens_seen": seen}
    return fitting.finish(ctx, student, found.fitted, numbers, problems)


def decoding(config: Rl) -> Decoding:
    """How the stage draws replies."""
    return Decoding(
        ThinkingPolicy(**config.policy.model_dump()),
        Sampling(**config.sampling.model_dump()),
        config.max_answer_tokens,
        config.max_batch,
        config.anneal_to,
    )


@contextmanager
def rewarding(
    settings: Reward, decoding: Decoding, student: Student, problems: Sequence[Problem]
) -> Iterator[Grader]:
    """What grades the replies of `student` to `problems`, with its worker processes, while the block lasts.

    Raises UsageError for a reward that cannot work, an unknown checker, and a function that cannot be
    loaded."""
    workers = min(4, os.cpu_count() or 1)
    with WorkerPool(workers, settings.seconds) as pool:
        judged = bool(settings.correct or settings.plus)
        check = once(partial(check_trace, pool=pool)) if judged else None
        if check is not None:
            require_checkers(problems, pool)
        reward = rewards.Weighted(_parts(settings, decoding, student, check, pool))
        with Grader(reward, check, workers=workers, seconds=settings.seconds) as grader:
            yield grader


def _parts(
    settings: Reward,
    decoding: Decoding,
    student: Student,
    check: rewards.Check | None,
    pool: WorkerPool,
) -> dict[str, tuple[float, rewards.Reward]]:
    """The parts that weigh anything, by name."""
    thinks = student.template.thinking
    parts: dict[str, tuple[float, rewards.Reward]] = {}
    if check is not None and settings.correct:
        parts["correct"] = (settings.correct, rewards.correctness(check))
    if check is not None and settings.plus:
        constants = rewards.Plus()
        if settings.max_tokens is not None:
            constants = constants.within(settings.max_tokens)
        ids = partial(rewards.reply_ids, student.tokenizer)
        parts["plus"] = (settings.plus, rewards.plus(check, ids, constants, thinks=thinks))
    if settings.format:
        parts["format"] = (settings.format, rewards.well_formed(thinks=thinks))
    if settings.overlong:
        longest = settings.max_tokens or _longest(decoding)
        cache = settings.overlong_cache or max(1, longest // 5)  # DAPO: 4,096 of 20,480
        parts["overlong"] = (settings.overlong, rewards.overlong(longest, cache))
    if settings.user is not None and settings.user_weight:
        parts["user"] = (settings.user_weight, rewards.by_user(settings.user, pool))
    if not parts:
        raise UsageError("reward: no part weighs anything; set correct, plus, format, overlong or user")
    return parts


def _longest(decoding: Decoding) -> int:
    if decoding.policy.max_tokens is None:
        raise UsageError("reward.overlong needs reward.max_tokens, or a policy with max_tokens")
    return decoding.policy.max_tokens + decoding.max_answer
