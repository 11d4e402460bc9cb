"""A reply as text while it is being written, and where a stop string ends its answer.

Promises: the pieces of a phase, put together, are the text of its ids; no piece ends in half a character, in
a closing marker that has begun or in a stop string that has begun; a piece is all forced or all sampled; the
tokens of all pieces are those of the phase. A stop string and what follows it is in no piece.
Does not: choose tokens, or look for stop strings in thinking or in forced text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tutelage.think.machine import PHASES, State
from tutelage.think.request import Logprob, Piece
from tutelage.tokens import Tokenizer, decode_ids

_THINKING, _ANSWER = PHASES.index("thinking"), PHASES.index("answer")
_HALF = "�"
# So many ids are decoded again with each new one (some tokenizers write an id by what stands before it).
_CONTEXT, _WINDOW = 4, 16


class Detokenizer:
    """Ids to text, one at a time. `feed` returns the text that is now certain."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._told = 0  # characters of the text of `_ids` that were returned

    def feed(self, token: int) -> str:
        """Text that `token` completes."""
        self._ids.append(token)
        text = decode_ids(self._tokenizer, self._ids)
        half = text.endswith(_HALF)
        certain = text[:-1] if half else text
        new = certain[self._told :]
        self._told = max(self._told, len(certain))
        if not half and len(self._ids) >= _WINDOW:
            self._ids = self._ids[-_CONTEXT:]
            self._told = len(decode_ids(self._tokenizer, self._ids))
        return new

    def flush(self) -> str:
        """What is left when nothing follows: a half character stands as U+FFFD."""
        text = decode_ids(self._tokenizer, self._ids)[self._told :] if self._ids else ""
        self._ids, self._told = [], 0
        return text


class Stream:
    """The pieces of one reply. `stopped`: the stop string that ended its answer."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.stopped: str | None = None
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._at = 0
        self._phase = _THINKING
        self._forced = False
        self._words = Detokenizer(tokenizer)
        self._held = ""  # certain text that may be the beginning of a stop string
        self._tokens = 0
        self._logprobs: list[Logprob] = []

    def push(self, state: State, logprobs: Sequence[Logprob] | None = None) -> list[Piece]:
        """Pieces of what `state` has written and will not take back since the last call. `logprobs` run in
        step with its ids; what has none yet waits."""
        pieces: list[Piece] = []
        end = state.settled
        if logprobs is not None:
            end = min(end, len(logprobs))
        while self._at < end and self.stopped is None:
            at, self._at = self._at, self._at + 1
            phase, forced = state.phases[at], bool(state.forced[at])
            if phase not in (_THINKING, _ANSWER):
                continue
            if (phase, forced) != (self._phase, self._forced):
                self._tell(pieces, run_ends=True, phase_ends=phase != self._phase)
                self._phase, self._forced = phase, forced
            self._tokens += 1
            if logprobs is not None:
                self._logprobs.append(logprobs[at])
            self._held += self._words.feed(state.ids[at])
            if phase == _ANSWER and not forced:
                self._cut()
        self._tell(pieces)
        return pieces

    def finish(self) -> list[Piece]:
        """The last piece, once nothing more is written."""
        pieces: list[Piece] = []
        if self.stopped is None:
            self._held += self._words.flush()
            if self._phase == _ANSWER and not self._forced:
                self._cut()
        self._tell(pieces, phase_ends=True)
        return pieces

    def _cut(self) -> None:
        """End at the first stop string that is complete."""
        found = [(self._held.find(stop), stop) for stop in self._stop if stop in self._held]
        if found:
            place, self.stopped = min(found)
            self._held = self._held[:place]

    def _tell(self, pieces: list[Piece], run_ends: bool = False, phase_ends: bool = False) -> None:
        over = phase_ends or self.stopped is not None
        if phase_ends and self.stopped is None:
            self._held += self._words.flush()
        keep = self._begun() if self._phase == _ANSWER and not self._forced and not over else 0
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        if text or (self._tokens and (run_ends or over)):
            phase: Literal["thinking", "answer"] = "answer" if self._phase == _ANSWER else "thinking"
            pieces.append(Piece(text, phase, self._forced, self._tokens, tuple(self._logprobs)))
            self._tokens, self._logprobs = 0, []

    def _begun(self) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        return next(
            (
                width
                for width in range(min(longest, len(self._held)), 0, -1)
                if any(stop.startswith(self._held[-width:]) for stop in self._stop)
            ),
            0,
        )
