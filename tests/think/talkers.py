"""A decoder that plays the real machine with a model that says what a test wants: for tests of methods that
must know lengths, answers and states beforehand. Real models are decoded in the tests of the engine."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from tinymodel import byte_tokenizer
from tutelage.records import Problem
from tutelage.students.template import Template, render_prompt
from tutelage.think.machine import PHASES
from tutelage.think.methods import Solver
from tutelage.think.request import Completion, Request
from tutelage.think.sampling import Sampling
from tutelage.tokens import decode_ids, encode_text

TOKENIZER = byte_tokenizer()
CLOSE, END = TOKENIZER.convert_tokens_to_ids(["</think>", "<|end|>"])


def token_of(letter: str) -> int:
    """ "|" is the closing marker, "$" the end of the reply."""
    return {"|": CLOSE, "$": END}.get(letter) or encode_text(TOKENIZER, letter)[0]


@dataclass
class Talker:
    """`say(prompt, seed)` is the text that the model wants to write; a refused close is passed over.
    `feel(prompt, written)` is its last state. `asked` keeps all requests."""

    say: Callable[[str, int], str]
    feel: Callable[[str, str], list[float]] = lambda prompt, written: [0.0]
    room: int = 500
    asked: list[Request] = field(default_factory=list)

    def generate(self, requests, progress=None) -> list[Completion]:
        self.asked += requests
        return [self._reply(request) for request in requests]

    def _reply(self, request: Request) -> Completion:
        state = request.policy.compile(TOKENIZER, Template()).start(
            self.room, request.prompt_ids[-1], request.max_answer
        )
        prompt = decode_ids(TOKENIZER, request.prompt_ids)
        if request.choose_wait is not None:
            state.choose_wait = lambda: request.choose_wait(
                torch.tensor(self.feel(prompt, decode_ids(TOKENIZER, state.ids))), state.progress.waits
            )
        letters: Iterator[str] = iter(self.say(prompt, request.seed) + "$" * self.room)
        banned: tuple[int, ...] = ()
        while not state.finished:
            token = next(token for token in map(token_of, letters) if token not in banned)
            banned = state.step(token).banned
        progress = state.progress
        return Completion(
            ids=tuple(state.ids),
            forced=bytes(state.forced),
            phases=bytes(state.phases),
            finish_reason=progress.finish_reason,
            closed_by=progress.closed_by,
            written=dict(progress.written),
            by_force=dict(progress.forced),
            refused=progress.refused,
            waits=progress.waits,
        )


def part(reply: Completion, phase: str) -> str:
    """The text of one phase."""
    pairs = zip(reply.ids, reply.phases, strict=True)
    return decode_ids(TOKENIZER, [token for token, number in pairs if PHASES[number] == phase])


def talking_solver(talker: Talker, **settings) -> Solver:
    """A solver over `talker`; the answer is the text of the answer, right where it equals the gold one."""
    settings.setdefault("sampling", Sampling(temperature=1.0))
    return Solver(
        engine=talker,
        prompt=lambda problem, line: tuple(
            render_prompt(TOKENIZER, Template(), problem.question + (f"\n{line}" if line else ""))
        ),
        read=lambda problems, replies: [part(reply, "answer") or None for reply in replies],
        verify=lambda problems, replies: [
            part(reply, "answer") == problem.gold for problem, reply in zip(problems, replies, strict=True)
        ],
        **settings,
    )


def questions(count: int, gold: str = "7") -> list[Problem]:
    return [Problem(f"p{i}", f"question {i}", gold) for i in range(count)]
