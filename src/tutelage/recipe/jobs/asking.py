"""A language model as a judge, paid like any teacher.

Promises: what it is asked goes through the run's ledger and the judge's own budget, so that nothing is bought
twice; after an error nothing more is bought; half a reply is none.
Does not: know what is asked, or read the replies (see `verify.llm_judge` and `train.judged`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from tutelage.errors import TutelageError
from tutelage.recipe.jobs.collecting import build_teacher
from tutelage.recipe.stage import Progress
from tutelage.records import Problem, Trace, stable_hash
from tutelage.teachers.collect import collect
from tutelage.teachers.endpoint import EndpointTeacher
from tutelage.teachers.replies import is_truncated
from tutelage.verify.llm_judge import NoReply


def judge_teacher(settings: Any) -> EndpointTeacher:
    """The endpoint of a judge's settings, checked. Raises UsageError for one that cannot be asked."""
    teacher = build_teacher(settings, "judge")
    assert isinstance(teacher, EndpointTeacher)  # the settings of a judge are those of an endpoint
    teacher.check()
    return teacher


@dataclass
class JudgeDesk:
    """Where the judge's questions are bought. After an error nothing more is bought; what the ledger holds
    is still used."""

    teacher: EndpointTeacher
    ledger: Path
    progress: Progress
    error: TutelageError | None = None
    costs: dict[str, Decimal | None] = field(default_factory=dict)

    def ask(self, prompts: Sequence[str]) -> list[str | NoReply | None]:
        """The judge's replies, in the order of `prompts`; equal prompts are one request."""
        keys = [stable_hash(prompt) for prompt in prompts]
        problems = {key: Problem(key, prompt) for key, prompt in zip(keys, prompts, strict=True)}
        found = collect(
            list(problems.values()),
            self.teacher,
            samples=1,
            ledger_path=self.ledger,
            progress=lambda done, total, note: self.progress(done, total, f"judge: {note}"),
            buy=self.error is None,
        )
        self.error = self.error or found.error
        failed = dict(found.failed)
        replies: dict[str, str | NoReply] = {}
        for trace in found.traces:
            self.costs[trace.problem_id] = trace.cost
            replies[trace.problem_id] = _reply(trace)
        if self.error is not None:
            failed = dict.fromkeys(failed, str(self.error))
        return [replies.get(key) or NoReply(failed.get(key, "no reply")) for key in keys]

    def metrics(self) -> dict[str, Any]:
        """The model, its replies behind the verdicts, and their cost (None: unknown)."""
        known = [cost for cost in self.costs.values() if cost is not None]
        dollars = format(sum(known, Decimal(0)).normalize(), "f") if len(known) == len(self.costs) else None
        return {"model": self.teacher.model, "replies": len(self.costs), "dollars": dollars}


def _reply(trace: Trace) -> str | NoReply:
    """The judge's words, unless they were cut: half a reply is no verdict."""
    if is_truncated(trace.finish_reason):
        return NoReply("its reply was cut at the token limit")
    return trace.answer if trace.answer.strip() else NoReply("its reply is empty")
