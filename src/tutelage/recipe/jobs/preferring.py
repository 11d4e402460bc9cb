"""Jobs of preferences: pairs from rollouts, by verdicts, by a judge or at pivotal tokens; and DPO on them.

Promises: outputs are whole or absent; the metrics say where the pairs come from, how long both sides are, and
what was left out and why; what a judge is asked goes through the run's ledger and the judge's own budget, and
a judge that stops early ends the job with PartialError, after the pairs so far are written; pairs made with
another tokenizer than the student's are refused.
Does not: hold a room's logic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tutelage.errors import PartialError, UsageError
from tutelage.recipe.jobs.asking import JudgeDesk, judge_teacher
from tutelage.recipe.stage import JobContext
from tutelage.recipe.training import Dpo, Pairs
from tutelage.records import Problem, by_id, read_records
from tutelage.students.pretrained import Student, load_student
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling
from tutelage.train import pivotal
from tutelage.train.continuations import Oracle, attempts
from tutelage.train.judged import judged_pairs
from tutelage.train.pairs import (
    Pair,
    PairSet,
    lengths,
    misfit,
    read_pairs,
    rollout_pairs,
    write_pairs,
)
from tutelage.train.rollouts import Rollout, read_rollouts
from tutelage.verify.user import absolute
from tutelage.verify.workers import WorkerPool


def pairs(ctx: JobContext[Pairs]) -> dict[str, Any]:
    """Preference pairs of one seed.

    Raises UsageError for settings and inputs that do not go together, and PartialError, after writing, when
    the judge stopped early."""
    config = ctx.config
    problems = by_id(read_records(ctx.path("problems"), Problem))
    rollouts = read_rollouts(ctx.path("rollouts"))
    wanted = list(dict.fromkeys(each.trace.problem_id for each in rollouts))[: config.limit]
    if unknown := next((name for name in wanted if name not in problems), None):
        raise UsageError(
            f"stage {ctx.stage}: its rollouts answer problem {unknown}, which is not among its problems"
        )
    used = set(wanted)
    rollouts = [each for each in rollouts if each.trace.problem_id in used]
    desk = None
    more: dict[str, Any] = {}
    if config.judge is not None:
        desk = JudgeDesk(judge_teacher(config.judge), ctx.ledger_path, ctx.progress)
        made = _judged(ctx, problems, rollouts, desk)
        more["judge"] = desk.metrics()
    elif config.method == "pivotal":
        made, more["continuations"] = _pivotal(ctx, problems, rollouts)
        more["probabilities"] = pivotal.told(made.pairs)
    else:
        made = rollout_pairs(
            rollouts,
            per_problem=config.per_problem,
            seed=ctx.seed or 0,
            truncated=config.truncated,
            length_ratio=config.length_ratio,
        )
    write_pairs(ctx.outputs["pairs"], made.pairs, problems)
    metrics = {
        "method": config.method,
        "pairs": len(made.pairs),
        "problems": len({pair.problem_id for pair in made.pairs}),
        "rollouts": len(rollouts),
        **lengths(made.pairs),
        "left_out": dict(made.left_out),
        **more,
    }
    if desk is not None and desk.error is not None:
        raise PartialError(f"the judge stopped early: {desk.error}", done=metrics) from desk.error
    return metrics


def _judged(
    ctx: JobContext[Pairs], problems: Mapping[str, Problem], rollouts: Sequence[Rollout], desk: JudgeDesk
) -> PairSet:
    config = ctx.config
    return judged_pairs(
        problems,
        rollouts,
        desk.ask,
        by=config.by,
        replies=config.replies,
        per_problem=config.per_problem,
        both_orders=config.both_orders,
        seed=ctx.seed or 0,
        progress=ctx.progress,
    )


def _pivotal(
    ctx: JobContext[Pairs], problems: Mapping[str, Problem], rollouts: Sequence[Rollout]
) -> tuple[PairSet, dict[str, int]]:
    """Pivotal tokens in some rollouts of each problem, and what the stage's model drew to find them."""
    config, here = ctx.config, Path.cwd()
    torch.set_num_threads(ctx.threads)
    student = load_student(str(ctx.path("model")))
    searched = attempts(student, rollouts, config.attempts)
    with WorkerPool(ctx.threads) as pool:
        oracle = Oracle(
            student,
            # A user's checker by its absolute path, for workers that stand in another folder.
            {name: replace(each, checker=absolute(each.checker, here)) for name, each in problems.items()},
            pool,
            ThinkingPolicy(**config.policy.model_dump()),
            Sampling(**config.sampling.model_dump()),
            seed=ctx.seed or 0,
            max_answer=config.max_answer_tokens,
            max_batch=config.max_batch,
            workers=ctx.threads,
        )
        search = pivotal.Search(config.gap, config.estimate, config.confirm, config.band)
        made = pivotal.pivotal_pairs(
            searched, oracle, search, per_problem=config.per_problem, progress=ctx.progress
        )
    return made, dict(oracle.counts)


def dpo(ctx: JobContext[Dpo]) -> dict[str, Any]:
    """One model trained on preferences, for one seed.

    Raises UsageError for pairs that are not the student's, and what `train_dpo` raises."""
    # Trainers take seconds to import, which pairs alone need not wait for.
    from tutelage.recipe.jobs import fitting
    from tutelage.train.preferences import Preference, summary, train_dpo, within

    config = ctx.config
    student = fitting.start(ctx)
    found, problems = own_pairs(ctx, student)
    kept, longer = within(found, config.max_length) if config.too_long == "drop" else (found, 0)
    result = train_dpo(
        student,
        kept,
        Preference(config.beta, config.loss, config.sft_weight, config.label_smoothing),
        fitting.optimiser(ctx),
        max_length=config.max_length,
        keep=fitting.keep(ctx),
        validation=fitting.validation(ctx),
        progress=ctx.progress,
    )
    learned = {pair.problem_id for pair in kept}
    numbers = {
        "examples": result.pairs,
        "problems": len(learned),
        "too_long": longer,
        "tokens_seen": result.tokens_seen,
        "epochs": result.epochs,
        **lengths(kept),
        **summary(result.fitted),
    }
    return fitting.finish(ctx, student, result.fitted, numbers, [problems[name] for name in sorted(learned)])


def own_pairs(ctx: JobContext[Dpo], student: Student) -> tuple[list[Pair], dict[str, Problem]]:
    """The pairs of all inputs, and their problems by id."""
    found: list[Pair] = []
    problems: dict[str, Problem] = {}
    for source in ctx.inputs["pairs"]:
        one = read_pairs(source.path)
        if name := misfit(student, one):
            raise UsageError(
                f"{source.path}: the pairs of problem {name} do not begin with this student's prompt; make "
                "the rollouts with a model of the same tokenizer, chat template and system message"
            )
        found += one.pairs
        problems |= one.problems
    return found, problems
