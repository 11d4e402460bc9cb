"""The thinking policy: how long a model thinks, as one frozen object that every way of decoding obeys.

Promises: an impossible policy is refused when it is built, or when it meets a tokenizer that cannot keep it,
with the reason; `to_dict` survives JSON. No model, clock or randomness is involved, and no heavy import.
Does not: play itself: see `segments` for the primitive that a proxy plays, `machine` for the token-level view
that engines drive, `engine` for decoding.

The idea of ending and prolonging thinking by force is budget forcing (Muennighoff et al. 2025, "s1: Simple
test-time scaling", section 3.1); `refuse_closes` is its number of ignored closes. Differences: the budget
holds for the whole turn, a minimum in tokens may be asked for as well, and the cut may wait for a good place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tutelage.errors import UsageError
from tutelage.think.effort import Effort, Exit

if TYPE_CHECKING:
    from tutelage.students.template import Template
    from tutelage.think.machine import Machine
    from tutelage.think.play import Play
    from tutelage.tokens import Tokenizer

_COUNTS = ("min_tokens", "max_tokens", "refuse_closes", "max_waits", "grace_tokens", "answer_reserve")
_OPTIONAL = ("max_tokens", "max_waits")
_CLOSES = re.compile(r"hard|newline|rank:[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class ThinkingPolicy:
    """How long to think. All counts are tokens of thinking, sampled and forced, markers not included.

    A close that the model makes by itself (its closing marker, or an end of text inside thinking) is
    *refused* while thinking is shorter than `min_tokens` or fewer than `refuse_closes` closes were refused,
    never when that would break the maximum or the answer's reserve. A refused close becomes the `wait`
    string (several are used in rotation) while fewer than `max_waits` were written (None: as many as
    needed); after that, or where `wait` is None, it is masked: the next best token is taken.

    At `max_tokens` (None: as long as there is room) thinking is closed by force: at once where `close` is
    "hard"; with "newline" at the end of the line, with "rank:K" as soon as the closing marker is among the K
    best next tokens, and in both cases after `grace_tokens` more at the latest. `close_text` is forced after
    every closing marker that we write. `answer_reserve` tokens of the room stay for the answer, `close_text`
    not included. `think_open` and `think_close` delimit the thinking (any number of tokens each); None: the
    markers of the model's template. A reply has one thinking part, so that the budget holds for the whole
    turn: markers in its answer, or in the prompt, are text.

    Raises UsageError for a policy that cannot be kept.
    """

    min_tokens: int = 0
    max_tokens: int | None = None
    refuse_closes: int = 0
    wait: str | tuple[str, ...] | None = None
    max_waits: int | None = None
    close: str = "hard"
    grace_tokens: int = 0
    close_text: str = ""
    answer_reserve: int = 32
    think_open: str | None = None
    think_close: str | None = None
    num_steps: int | None = None
    exit: str | None = None
    continuous: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.wait, list):
            object.__setattr__(self, "wait", tuple(self.wait))
        for name in _COUNTS:
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise UsageError(f"thinking policy: {name} must be a whole number, not {value!r}")
            if value < 0:
                raise UsageError(f"thinking policy: {name} is {value}; it must not be negative")
        for name in ("close_text", "think_open", "think_close"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name == "close_text"):
                raise UsageError(f"thinking policy: {name} must be text, not {value!r}")
        self._check_lengths()
        self._check_waits()
        self._check_close()
        if self.exit is not None and not isinstance(self.exit, str):
            raise UsageError(f"thinking policy: exit must be text such as kl:5e-4, not {self.exit!r}")
        if not isinstance(self.continuous, bool):
            raise UsageError(f"thinking policy: continuous must be true or false, not {self.continuous!r}")
        _ = self.effort
        if (self.think_open is None) != (self.think_close is None):
            raise UsageError("thinking policy: give both of think_open and think_close, or none of them")
        if self.think_open is not None and not (self.think_open.strip() and (self.think_close or "").strip()):
            raise UsageError("thinking policy: think_open and think_close must not be empty")
        if self.think_open is not None and self.think_open == self.think_close:
            raise UsageError("thinking policy: think_open and think_close are the same; they must differ")

    def _check_lengths(self) -> None:
        if self.answer_reserve < 1:
            raise UsageError("thinking policy: answer_reserve is 0, which leaves no room for an answer")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise UsageError(
                f"thinking policy: min_tokens {self.min_tokens} is larger than max_tokens {self.max_tokens}"
            )
        if self.max_tokens == 0 and self.refuse_closes:
            raise UsageError("thinking policy: refuse_closes needs room to think, but max_tokens is 0")

    def _check_waits(self) -> None:
        texts = self.wait_strings if self.wait is None or isinstance(self.wait, str | tuple) else (None,)
        if not all(isinstance(text, str) for text in texts):
            raise UsageError(
                f"thinking policy: wait must be text, a list of texts or None, not {self.wait!r}"
            )
        if self.wait is not None and (not texts or not all(texts)):
            raise UsageError("thinking policy: wait is empty; write None for masking without a string")
        if self.max_waits is not None and self.wait is None:
            raise UsageError("thinking policy: max_waits counts wait strings, but wait is None")

    def _check_close(self) -> None:
        ways = '"hard", "newline" or "rank:K" with K of at least 1'
        if not isinstance(self.close, str) or not re.fullmatch(
            r"hard|newline|rank:[1-9][0-9]{0,8}", self.close
        ):
            raise UsageError(f"thinking policy: close must be {ways}, not {self.close!r}")
        if self.close == "hard":
            if self.grace_tokens:
                raise UsageError(
                    "thinking policy: grace_tokens is time to look for a good place to close; "
                    'it needs close "newline" or "rank:K"'
                )
            return
        if self.max_tokens is None:
            raise UsageError(f'thinking policy: close "{self.close}" needs max_tokens, after which it looks')
        if not self.grace_tokens:
            raise UsageError(f'thinking policy: close "{self.close}" needs grace_tokens of at least 1')

    @property
    def wait_strings(self) -> tuple[str, ...]:
        """The wait strings in rotation order; empty when closes are masked."""
        if self.wait is None:
            return ()
        return (self.wait,) if isinstance(self.wait, str) else tuple(self.wait)

    @property
    def rank(self) -> int | None:
        """K of `close` "rank:K", else None."""
        return int(self.close.removeprefix("rank:")) if self.close.startswith("rank:") else None

    @property
    def effort(self) -> Effort:
        """How deep each token is thought about. Raises UsageError for an effort that makes no sense."""
        return Effort(self.num_steps, Exit.parse(self.exit) if self.exit else None, self.continuous)

    @property
    def refuses(self) -> bool:
        """Whether some close may be refused."""
        return self.min_tokens > 0 or self.refuse_closes > 0

    def compile(self, tokenizer: Tokenizer, template: Template | None = None) -> Machine:
        """This policy in the ids of `tokenizer`, thinking delimited as `template` says (None: by this
        policy's own markers, else `<think>` and `</think>`, the prompt ending with the opening one).

        Raises UsageError where the policy asks for thinking from a template without it, its markers are not
        the template's, or a wait string is no token at all or does not fit into the maximum."""
        from tutelage.think.machine import compile_policy

        return compile_policy(self, tokenizer, template)

    def segments(
        self,
        room: int,
        *,
        count: Callable[[str], int] | None = None,
        max_answer: int | None = None,
        prefilled: bool = True,
        thinks: bool = True,
    ) -> Play:
        """One reply of at most `room` tokens as a sequence of segments, for whoever decodes by continuing
        text: `play.segment` is what to do now, `play.forced` and `play.generated` say what was done.

        `count`: tokens of a text, used for what is forced (None: its UTF-8 bytes, which no byte-level
        tokenizer exceeds); `prefilled`: the prompt ends with the opening marker; `thinks` False: the whole
        reply is the answer. Raises UsageError as `compile` and `machine.start` do.

            >>> play = ThinkingPolicy(max_tokens=40, close_text="Final Answer:").segments(room=200)
            >>> play.segment
            Generate(phase='thinking', until='close', at_most=40, mask_first=False)
            >>> play.generated(40, "length")  # the model used all it had
            >>> (play.segment.phase, play.segment.text)
            ('close', '</think>')
        """
        from tutelage.think.play import play_text

        return play_text(self, room, count, max_answer, prefilled, thinks)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-serialisable values, the same after a round through JSON."""
        fields = asdict(self)
        if isinstance(self.wait, tuple):
            fields["wait"] = list(self.wait)
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ThinkingPolicy:
        """The inverse of `to_dict`. Raises UsageError that names an unknown field."""
        unknown = sorted(set(fields) - set(cls.__dataclass_fields__))
        if unknown:
            known = ", ".join(cls.__dataclass_fields__)
            raise UsageError(f"thinking policy: unknown field {unknown[0]!r}; known: {known}")
        return cls(**fields)


def check_fit(policy: ThinkingPolicy, waits: Sequence[int]) -> None:
    """Raises UsageError when a wait string, of the given numbers of tokens, cannot be written."""
    for text, length in zip(policy.wait_strings, waits, strict=True):
        if not length:
            raise UsageError(f"thinking policy: the wait string {text!r} has no tokens in this tokenizer")
        if policy.max_tokens is not None and policy.refuse_closes and length >= policy.max_tokens:
            raise UsageError(
                f"thinking policy: the wait string {text!r} is {length} tokens long and does not fit into "
                f"max_tokens {policy.max_tokens}"
            )
