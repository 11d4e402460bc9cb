"""Jobs that draw replies of a student: judged rollouts as data, and PPO, which learns from its own.

Promises: rollouts keep their ids and the verdict on each; the metrics say how often they are right, with an
interval over problems, and how many problems have both right and wrong ones.
Does not: hold a room's logic.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tutelage.measure.evaluate import scores_by_problem, summed_up
from tutelage.recipe.jobs.measuring import device_of, load
from tutelage.recipe.stage import JobContext
from tutelage.recipe.training import Ppo, Rollouts
from tutelage.records import Problem, Trace, Verdict, by_id, read_records, write_records
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling
from tutelage.train.rollouts import sample, write_rollouts
from tutelage.verify.cascade import judge
from tutelage.verify.user import absolute


def rollouts(ctx: JobContext[Rollouts]) -> dict[str, Any]:
    """Replies of one student to its problems, judged, for one seed."""
    config = ctx.config
    problems = read_records(ctx.path("problems"), Problem)[: config.first]
    here = Path.cwd()
    checked = by_id([replace(each, checker=absolute(each.checker, here)) for each in problems])
    student = load(ctx.path("model"), config.bf16, ctx.threads)
    started = time.monotonic()
    drawn = sample(
        student,
        problems,
        samples=config.samples,
        policy=ThinkingPolicy(**config.policy.model_dump()),
        sampling=Sampling(**config.sampling.model_dump()),
        seed=ctx.seed or 0,
        max_answer=config.max_answer_tokens,
        max_batch=config.max_batch,
        maker=ctx.stage,
        progress=ctx.progress,
    )
    seconds = time.monotonic() - started
    traces = [each.trace for each in drawn]
    verdicts = list(judge(checked, traces, workers=ctx.threads, progress=ctx.progress))
    status = {verdict.trace_id: verdict.status for verdict in verdicts}
    write_records(ctx.outputs["traces"], traces, Trace)
    write_records(ctx.outputs["verdicts"], verdicts, Verdict)
    write_rollouts(ctx.outputs["rollouts"], [replace(each, status=status[each.trace.id]) for each in drawn])
    shares = scores_by_problem(traces, verdicts).values()
    return {
        **summed_up(problems, traces, verdicts).to_json(),
        "replies": len(drawn),
        "problems_with_both": sum(len(set(scores)) == 2 for scores in shares),
        "tokens": sum(len(each.ids) for each in drawn),
        "decode_seconds": round(seconds, 3),
        "device": device_of(student),
    }


def ppo(ctx: JobContext[Ppo]) -> dict[str, Any]:
    """A model reinforced by PPO, for one seed."""
    # Trainers take seconds to import, which rollouts alone need not wait for.
    from tutelage.recipe.jobs import fitting
    from tutelage.recipe.jobs.reinforcing import decoding, rewarding
    from tutelage.train.ppo import PpoSettings, train_ppo

    config = ctx.config
    problems = read_records(ctx.path("problems"), Problem)
    student = fitting.start(ctx)
    with rewarding(config.reward, decoding(config), student, problems) as grader:
        found = train_ppo(
            student,
            problems,
            grader,
            fitting.optimiser(ctx),
            settings=PpoSettings(
                group=config.group,
                epochs=config.epochs,
                minibatch=config.minibatch,
                clip_low=config.clip_low,
                clip_high=config.clip_high,
                gamma=config.gamma,
                lam=config.gae_lambda,
                value_weight=config.value_weight,
                value_clip=config.value_clip,
                value_learning_rate=config.value_learning_rate,
                kl=config.kl,
            ),
            decoding=decoding(config),
            keep=fitting.keep(ctx),
            validation=fitting.validation(ctx),
            progress=ctx.progress,
        )
    return fitting.finish(ctx, student, found.fitted, found.totals, problems)
