"""Ways to spend compute on a question, behind one interface, so that they can be compared at equal tokens.

A `Solver` is a model with all that it takes to put problems to it and to read its answers. A `Method` is one
way to use it: think to a budget, wait, try again, vote. What it gives per problem and sample is an
`Outcome`: the reply it stands by, every attempt that it cost, and their tokens together.

Promises: the tokens of an outcome are those of all its attempts, thrown away or not; `solve` decodes all
methods together, so that what several of them write alike is computed once; the random numbers of an attempt
depend on (seed, problem, number of the attempt) alone, so that methods are compared under common random
numbers and a vote of four uses four of the replies that a vote of eight uses; a method that looks at the gold
answer says so (`oracle`).
Does not: render prompts, read answers or judge them (they are handed in), or put intervals around anything.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tutelage.errors import UsageError
from tutelage.records import Problem, stable_hash
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.request import Completion, Request
from tutelage.think.sampling import Sampling

Progress = Callable[[int, int, str], None]
Prompt = Callable[[Problem, str], tuple[int, ...]]
Read = Callable[[Sequence[Problem], Sequence[Completion]], Sequence[str | None]]
Verify = Callable[[Sequence[Problem], Sequence[Completion]], Sequence[bool]]


class Decoder(Protocol):
    """What decodes requests: the engine."""

    def check(self, request: Request) -> None:
        """Raises UsageError that says why `request` cannot be served."""
        ...

    def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Completion]:
        """Completions in the order of `requests`."""
        ...


@dataclass(frozen=True, slots=True)
class Solver:
    """A model that answers problems, `samples` times each.

    `prompt(problem, line)` gives the ids before the reply; `line`, if not empty, is to be added to the
    question. `read` gives the answers in canonical form, equal texts for equal answers, None where there is
    none: it may not look at the gold answer. `verify` says which replies are right; only methods that are
    marked `oracle` ask it. `policy` is the natural one, its maximum bounds every method."""

    engine: Decoder
    prompt: Prompt
    read: Read
    verify: Verify | None = None
    policy: ThinkingPolicy = field(default_factory=ThinkingPolicy)
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    samples: int = 1
    max_answer: int | None = None

    def request(
        self,
        problem: Problem,
        attempt: int,
        policy: ThinkingPolicy | None = None,
        line: str = "",
        **more: Any,
    ) -> Request:
        """The request of attempt number `attempt` at `problem`; `policy` None is the natural one. `more` are
        further fields of the request."""
        return Request(
            prompt_ids=self.prompt(problem, line),
            policy=self.policy if policy is None else policy,
            sampling=self.sampling,
            seed=reply_seed(self.seed, problem.id, attempt),
            max_answer=self.max_answer,
            **more,
        )


def reply_seed(seed: int, problem_id: str, attempt: int) -> int:
    """The seed of one reply, a function of the three alone."""
    return int(stable_hash(seed, problem_id, attempt), 16)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One reply, its canonical answer, whether it is right (None where nobody asked), and the request that it
    answers."""

    completion: Completion
    answer: str | None
    right: bool | None
    asked: Request


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a method made of one problem: `attempts` in the order in which they were made, and which of them
    it stands by (None: it gives no answer)."""

    problem: Problem
    sample: int
    attempts: tuple[Attempt, ...]
    picked: int | None

    @property
    def chosen(self) -> Completion | None:
        """The reply that the method stands by; its answer is the outcome's."""
        return None if self.picked is None else self.attempts[self.picked].completion

    @property
    def answer(self) -> str | None:
        """The canonical answer, None where there is none."""
        return None if self.picked is None else self.attempts[self.picked].answer

    @property
    def thinking(self) -> tuple[int, int]:
        """Thinking tokens of all attempts together: (sampled, forced)."""
        counts = [attempt.completion.count("thinking") for attempt in self.attempts]
        return sum(sampled for sampled, _ in counts), sum(forced for _, forced in counts)

    @property
    def tokens(self) -> int:
        """Tokens of all attempts together, of every phase, sampled and forced: as if nothing were shared."""
        return sum(len(attempt.completion.ids) for attempt in self.attempts)


Play = Generator[Sequence[Request], Sequence[Attempt], int | None]


class Method(ABC):
    """One way to spend compute."""

    __slots__ = ()

    @property
    def oracle(self) -> bool:
        """Whether it looks at the gold answer, which nobody has in earnest: what it reaches is then an upper
        bound, not a result."""
        return False

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called in the rows of a curve."""

    @abstractmethod
    def row(self) -> dict[str, Any]:
        """Its settings for the row of a curve, JSON-ready."""

    @abstractmethod
    def play(self, solver: Solver, problem: Problem, sample: int) -> Play:
        """Outcome number `sample` of `problem`: yields the requests of a round, is sent the attempts that
        they became, and returns the index of the chosen one among all attempts (None: no answer)."""

    def check(self, solver: Solver) -> None:
        """Raises UsageError when `solver` cannot play it."""
        if self.oracle and solver.verify is None:
            raise UsageError(f"{self.name}: it needs a verifier, and this solver has none")

    def run(
        self, solver: Solver, problems: Sequence[Problem], progress: Progress | None = None
    ) -> list[Outcome]:
        """Outcomes problem by problem, sample by sample."""
        return solve([(solver, self)], problems, progress)[0]


class Single(Method):
    """A method of one reply: everything lies in the request. Parallel methods take several of them."""

    __slots__ = ()

    @abstractmethod
    def request(self, solver: Solver, problem: Problem, attempt: int, **more: Any) -> Request:
        """The request of attempt number `attempt`; `more` are further fields of it."""

    def play(self, solver: Solver, problem: Problem, sample: int) -> Play:
        """One round of one request."""
        yield [self.request(solver, problem, sample)]
        return 0


@dataclass(slots=True)
class _Game:
    """A play that is under way."""

    solver: Solver
    method: Method
    problem: Problem
    sample: int
    play: Play
    asked: Sequence[Request] = ()
    attempts: list[Attempt] = field(default_factory=list)
    picked: int | None = None
    over: bool = False

    def go_on(self, attempts: Sequence[Attempt] | None) -> None:
        """Take the attempts of this round (None: there was none yet) up to the requests of the next."""
        try:
            if attempts is None:
                self.asked = next(self.play)
            else:
                self.attempts += attempts
                self.asked = self.play.send(attempts)
        except StopIteration as stop:
            self.over, self.asked, self.picked = True, (), stop.value


def solve(
    tasks: Sequence[tuple[Solver, Method]], problems: Sequence[Problem], progress: Progress | None = None
) -> list[list[Outcome]]:
    """The outcomes of each task, problem by problem, sample by sample. All solvers share one engine.

    All tasks are decoded together, in rounds: the first holds everything but second tries. `progress` is
    told of each round's replies. Raises UsageError, before anything is decoded, for a method that its solver
    cannot play."""
    if len({id(solver.engine) for solver, _ in tasks}) > 1:
        raise UsageError("methods can be run together only on one engine; run them one after the other")
    for solver, method in tasks:
        method.check(solver)
    games: list[list[_Game]] = [[] for _ in tasks]
    order: list[_Game] = []  # problem by problem, so that equal prompts are asked next to each other
    for problem in problems:
        for own, (solver, method) in zip(games, tasks, strict=True):
            fresh = [
                _Game(solver, method, problem, sample, method.play(solver, problem, sample))
                for sample in range(solver.samples)
            ]
            own += fresh
            order += fresh
    for game in order:
        game.go_on(None)
    while playing := [game for game in order if not game.over]:
        _round(playing, progress)
    return [
        [Outcome(game.problem, game.sample, tuple(game.attempts), game.picked) for game in own]
        for own in games
    ]


def _round(games: Sequence[_Game], progress: Progress | None) -> None:
    """Decode what the games ask for, read the replies, and let each game go on."""
    requests = [request for game in games for request in game.asked]
    decoded = iter(games[0].solver.engine.generate(requests, progress))
    got = [(game, next(decoded)) for game in games for _ in game.asked]
    answers = _told([(game.solver.read, game, reply) for game, reply in got])
    rights = _told([(game.solver.verify if game.method.oracle else None, game, reply) for game, reply in got])
    replies = [reply for _, reply in got]
    attempts = iter([Attempt(*one) for one in zip(replies, answers, rights, requests, strict=True)])
    for game in games:
        game.go_on([next(attempts) for _ in game.asked])


def _told(questions: Sequence[tuple[Read | Verify | None, _Game, Completion]]) -> list[Any]:
    """What each callable says of its reply, None where there is none. A callable is called once for all its
    replies, and told once of equal replies to a problem: methods that share replies make many of them."""
    keys = [(id(ask), game.problem.id, reply.ids, reply.phases) for ask, game, reply in questions]
    distinct = dict(zip(keys, questions, strict=True))
    told: dict[Any, Any] = {}
    for ask in {id(ask): ask for ask, _, _ in questions}.values():
        mine = [(key, game.problem, reply) for key, (one, game, reply) in distinct.items() if one is ask]
        if ask is not None:
            said = ask([problem for _, problem, _ in mine], [reply for _, _, reply in mine])
            told |= zip([key for key, _, _ in mine], said, strict=True)
    return [told.get(key) for key in keys]
