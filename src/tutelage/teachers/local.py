"""A local model that answers problems: the project's own engine as a source of traces.

Two ways to the same traces. A *sampler* (problems in, traces out) is for measuring a model: what it gives is
kept with the measurement. As a teacher, through `collect`, each reply goes into the ledger, so that hours of
decoding are done once and go on after a kill.

Promises: token counts are counts of ids, sampled and forced apart; forced text is marked by its place in the
thinking; the random numbers of a reply depend on (seed, problem, sample) alone, so that two policies, or two
models, are compared under common random numbers; the same call gives equal traces. In the ledger the weights
are named by their own hash: a model that was trained on is another teacher, wherever it lies.
Does not: judge, or load models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tutelage.errors import UsageError
from tutelage.ledger import Ledger, Settled
from tutelage.records import Problem, Trace, clean_text, stable_hash
from tutelage.students.pretrained import Student
from tutelage.students.template import render_prompt
from tutelage.teachers import money
from tutelage.teachers.marked import reply_texts, trace_fields
from tutelage.teachers.orders import Bought, Order, chunks, order
from tutelage.teachers.replies import Parsed, load_json, parse_reply
from tutelage.teachers.usage import bill
from tutelage.teachers.watch import Watch
from tutelage.think.backend import check_model
from tutelage.think.engine import Completion, Engine, Request
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling

Progress = Callable[[int, int, str], None]
Sampler = Callable[[Sequence[Problem]], Iterator[Trace]]


BASE_URL = "local:"
# Batches between two commits to the ledger: a kill loses at most so many, and the last rows of a batch, which
# run alone, are few beside the rest.
BATCHES = 4


@dataclass(frozen=True, slots=True)
class LocalTeacher:
    """A student that answers: replies under `sampling`, each answer of at most `max_answer` sampled tokens,
    `max_batch` rows at a time. `maker` names it in the traces.

    A sampler takes its `samples` per problem from here and its policy from its caller. `collect` gives the
    sample numbers, thinks under `policy`, and needs `model`: what names the weights in the ledger, usually
    their fingerprint (see `weights`). `price` is per million tokens (unknown: decoding here has no price)."""

    student: Student
    maker: str
    sampling: Sampling = field(default_factory=Sampling)
    samples: int = 1
    seed: int = 0
    max_answer: int = 64
    max_batch: int = 64
    policy: ThinkingPolicy = field(default_factory=ThinkingPolicy)
    model: str = ""
    price: money.Price = money.UNKNOWN

    def check(self) -> None:
        """Raises UsageError for a model that cannot be run, or a policy that it cannot keep."""
        if not self.model:
            raise UsageError("model: nothing names the weights in the ledger; give their fingerprint")
        for name in ("max_answer", "max_batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}: {getattr(self, name)} is not at least 1")
        check_model(self.student.model)
        self.policy.compile(self.student.tokenizer, self.student.template)

    def order(self, problem: Problem, sample: int) -> Order:
        """One reply. The seed is that of this problem and sample, so the body holds all that decides it."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": clean_text(problem.question)}],
            "template": self.student.template.to_dict(),
            "policy": self.policy.to_dict(),
            "sampling": self.sampling.to_dict(),
            "max_answer": self.max_answer,
            "seed": _seed(self, problem, sample),
        }
        return order(problem, sample, BASE_URL, self.model, body)

    def read(self, raw: bytes) -> Parsed:
        """A stored reply, with what only our own engine knows."""
        found = parse_reply(raw, tags=())
        told = load_json(raw)
        own = told.get("tutelage") if isinstance(told, dict) else None
        if found.state == "failed" or not isinstance(own, dict):
            return found
        return replace(
            found,
            closed_by=own.get("closed_by"),
            thinking_forced=own.get("thinking_forced"),
            answer_forced=own.get("answer_forced"),
            forced_spans=tuple((first, last) for first, last in own.get("forced_spans", ())),
        )

    def settled(self, found: Parsed) -> Settled:
        """The ledger's account of a reply. Its counts are of sampled tokens."""
        return Settled(
            found.state,
            found.reason,
            found.prompt_tokens,
            found.completion_tokens,
            bill(self.price, found.usage),
        )

    def trace_settings(self, sample: int) -> dict[str, Any]:
        """All that decides a reply but the problem."""
        return {**decode_settings(self, self.policy), "model": self.model}

    def buy(self, wanted: Iterator[Order], ledger: Ledger, watch: Watch) -> Bought:
        """Decode `wanted`, some batches per transaction. A problem that leaves no room for a reply is a
        failed order; the others go on."""
        held: list[tuple[Problem, int]] = []
        engine = Engine(self.student, max_batch=self.max_batch)
        for chunk in chunks(wanted, self.max_batch * BATCHES):
            claims = ledger.owe([each.debt for each in chunk])
            held += [(each.problem, each.sample) for each in chunk if claims[each.debt.key] == "held"]
            watch.tick(sum(claims[each.debt.key] == "stored" for each in chunk))
            todo: list[tuple[Order, Request]] = []
            prompts: dict[str, Request] = {}  # rendered once per problem
            for each in chunk:
                if claims[each.debt.key] != "yours":
                    continue
                if each.problem.id not in prompts:
                    prompts[each.problem.id] = _request(self, each.problem, self.policy)
                request = replace(prompts[each.problem.id], seed=_seed(self, each.problem, each.sample))
                if why := _refusal(engine, request):
                    ledger.settle(each.debt.key, Settled("failed", why))
                    watch.tick(1, f"failed: {why}")
                else:
                    todo.append((each, request))
            self._decode(engine, todo, ledger, watch)
        return Bought(tuple(held))

    def _decode(
        self, engine: Engine, todo: Sequence[tuple[Order, Request]], ledger: Ledger, watch: Watch
    ) -> None:
        def alive(done: int, total: int, note: str) -> None:
            ledger.beat()
            watch.tick(0)

        requests = [request for _, request in todo]
        raws = [
            _raw(self, len(request.prompt_ids), reply)
            for request, reply in zip(requests, engine.generate(requests, alive), strict=True)
        ]
        found = [self.settled(self.read(raw)) for raw in raws]
        ledger.record(
            (each.debt.key, raw, one) for (each, _), raw, one in zip(todo, raws, found, strict=True)
        )
        for one in found:
            watch.got(one)
        watch.tick(len(found))


def local_sampler(teacher: LocalTeacher, policy: ThinkingPolicy, progress: Progress | None = None) -> Sampler:
    """Problems in, traces out (problem by problem, sample by sample) under `policy`.

    The sampler raises UsageError for a policy, a prompt or a model that cannot be run."""

    def sample(problems: Sequence[Problem]) -> Iterator[Trace]:
        replies = decode(teacher, problems, policy, progress=progress)
        yield from to_traces(teacher, problems, policy, replies)

    return sample


def decode(
    teacher: LocalTeacher,
    problems: Sequence[Problem],
    policy: ThinkingPolicy,
    progress: Progress | None = None,
    *,
    logprobs: bool = False,
    each: Callable[[int, Completion], None] | None = None,
) -> list[Completion]:
    """Completions of every problem, problem by problem, sample by sample; with `logprobs` each id with its
    log-probability. `each` is told (number, completion) as soon as one is there."""
    requests: list[Request] = []
    for problem in problems:
        first = replace(_request(teacher, problem, policy), logprobs=0 if logprobs else None)
        for sample in range(teacher.samples):
            requests.append(replace(first, seed=_seed(teacher, problem, sample)))
    return Engine(teacher.student, max_batch=teacher.max_batch).generate(requests, progress, each)


def _request(teacher: LocalTeacher, problem: Problem, policy: ThinkingPolicy) -> Request:
    prompt = tuple(render_prompt(teacher.student.tokenizer, teacher.student.template, problem.question))
    return Request(prompt, policy, teacher.sampling, max_answer=teacher.max_answer)


def _refusal(engine: Engine, request: Request) -> str:
    """Why this one request cannot be decoded, "" when it can."""
    try:
        engine.check(request)
    except UsageError as error:
        return str(error)
    return ""


def _seed(teacher: LocalTeacher, problem: Problem, sample: int) -> int:
    return int(stable_hash(teacher.seed, problem.id, sample), 16)


def decode_settings(teacher: LocalTeacher, policy: ThinkingPolicy) -> dict[str, Any]:
    """All that decides a reply but the problem, its sample number and the weights."""
    return {
        "policy": policy.to_dict(),
        "sampling": teacher.sampling.to_dict(),
        "seed": teacher.seed,
        "max_answer": teacher.max_answer,
        "template": teacher.student.template.to_dict(),
    }


def to_traces(
    teacher: LocalTeacher, problems: Sequence[Problem], policy: ThinkingPolicy, replies: Sequence[Completion]
) -> Iterator[Trace]:
    """The completions of `decode` as traces."""
    settings = decode_settings(teacher, policy)
    tokenizer, template = teacher.student.tokenizer, teacher.student.template
    prompts = [len(render_prompt(tokenizer, template, problem.question)) for problem in problems]
    for index, reply in enumerate(replies):
        place, sample = divmod(index, teacher.samples)
        yield to_trace(teacher, problems[place], settings, sample, prompts[place], reply)


def to_trace(
    teacher: LocalTeacher,
    problem: Problem,
    settings: dict[str, Any],
    sample: int,
    prompt_tokens: int,
    reply: Completion,
) -> Trace:
    """One completion as a trace with `settings`, which decided it."""
    return Trace(
        id=stable_hash(problem.id, teacher.maker, settings, sample),
        problem_id=problem.id,
        sample=sample,
        maker=teacher.maker,
        settings=settings,
        prompt_tokens=prompt_tokens,
        **trace_fields(teacher.student.tokenizer, reply),
    )


def _raw(teacher: LocalTeacher, prompt_tokens: int, reply: Completion) -> bytes:
    """A completion as the ledger keeps it: a chat completion, and beside it what only our engine knows."""
    thinking, answer, spans = reply_texts(teacher.student.tokenizer, reply)
    sampled, forced = reply.count("thinking")
    answered, prompted = reply.count("answer")
    message = {"role": "assistant", "content": answer, "reasoning_content": thinking}
    body = {
        "choices": [{"index": 0, "message": message, "finish_reason": reply.finish_reason}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": sampled + answered,
            "completion_tokens_details": {"reasoning_tokens": sampled},
        },
        "tutelage": {
            "closed_by": reply.closed_by,
            "thinking_forced": forced,
            "answer_forced": prompted,
            "forced_spans": spans,
        },
    }
    return json.dumps(body).encode()
