"""How much may be asked of a server now: learned concurrency, pauses, and ceilings of one's own.

Promises
- Concurrency starts at START, rises by one with each success until the first fall (it doubles in the time of
  one reply), then by one for as many successes as it is high; it falls by three tenths once per burst of
  refusals (429, 503, 529, timeouts), and stays between 1 and the given highest.
- A wait that a server asks for (Retry-After) is kept by all requests.
- In any T seconds at most T x `per_s` + `burst` are taken from a bucket, estimates apart.
Does not: sleep, read a clock (every `now` is handed in, in seconds), or know other processes: each has its
own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tutelage.teachers.rate import backoff

# Most servers take this many at once; from there to 256 it is three replies' time.
START = 32
FALL = 0.7
# A bucket of requests lets a clock that is late by 50 ms catch up; one of tokens holds two seconds.
REQUEST_SLACK = 0.05
TOKEN_SLACK = 2.0
# Tokens of a request, question and reply, before any reply has shown how many there are.
GUESS = 1000.0


@dataclass(slots=True)
class Bucket:
    """Leaky by `per_s` units a second, at most `burst` units at once. Starts full."""

    per_s: float
    burst: float
    _level: float = field(init=False)
    _then: float = float("-inf")

    def __post_init__(self) -> None:
        self._level = self.burst

    def wait(self, now: float, amount: float) -> float:
        """Seconds until `amount` may be taken, 0 when now. More than `burst` is taken when the bucket is
        full, and paid back before the next."""
        missing = min(amount, self.burst) - self._fill(now)
        return missing / self.per_s if missing > 1e-9 else 0.0

    def take(self, now: float, amount: float) -> None:
        """Take `amount`; a negative amount gives back what an estimate took too much."""
        self._level = min(self.burst, self._fill(now) - amount)

    def _fill(self, now: float) -> float:
        if now > self._then:
            if self._then != float("-inf"):
                self._level = min(self.burst, self._level + (now - self._then) * self.per_s)
            self._then = now
        return self._level


def request_bucket(per_s: float) -> Bucket:
    """At most `per_s` requests in any second, apart from the slack of REQUEST_SLACK seconds."""
    return Bucket(per_s, max(1.0, per_s * REQUEST_SLACK))


def token_bucket(per_min: int) -> Bucket:
    """At most `per_min` tokens in any minute as far as estimates hold: what may come at once is taken off."""
    burst = per_min * TOKEN_SLACK / 60
    return Bucket((per_min - burst) / 60, burst)


@dataclass(slots=True)
class Pace:
    """What one process has learned about one server. `highest` requests at a time at most."""

    highest: int
    requests: Bucket | None = None
    tokens: Bucket | None = None
    first_backoff: float = 1.0
    # Only spreads requests in time; nothing that is stored depends on it.
    jitter: random.Random = field(default_factory=random.Random)
    at_once: int = 0
    pause_until: float = float("-inf")
    _limit: float = field(init=False)
    _rising: bool = True
    _fell: float = float("-inf")
    _bursts: int = 0
    _guess: float = GUESS
    _replies: int = 0

    def __post_init__(self) -> None:
        self._limit = float(min(self.highest, START))

    @property
    def limit(self) -> int:
        """How many requests may be in flight."""
        return int(self._limit)

    def wait(self, now: float) -> float | None:
        """Seconds until a request may start, 0 for now; None: only when another one has ended."""
        if self.at_once >= self.limit:
            return None
        seconds = max(0.0, self.pause_until - now)
        if self.requests:
            seconds = max(seconds, self.requests.wait(now, 1))
        if self.tokens:
            seconds = max(seconds, self.tokens.wait(now, self._guess))
        return seconds

    def start(self, now: float) -> float:
        """A request starts. Gives the tokens that were taken for it, to be handed back to `count`."""
        self.at_once += 1
        if self.requests:
            self.requests.take(now, 1)
        if not self.tokens:
            return 0.0
        self.tokens.take(now, self._guess)
        return self._guess

    def end(self) -> None:
        """A request ended, however it did."""
        self.at_once -= 1

    def count(self, now: float, taken: float, tokens: int | None) -> None:
        """A reply told how many tokens it used (None: it did not tell; the guess stands)."""
        if tokens is None:
            return
        self._replies += 1
        self._guess += (tokens - self._guess) / min(self._replies, 50)
        if self.tokens:
            self.tokens.take(now, tokens - taken)

    def success(self) -> None:
        """A whole reply came."""
        self._bursts = 0
        # A limit that is not used is not known to be good. (Half of it: replies come in bursts.)
        if self.at_once * 2 >= self.limit:
            self._limit = min(self.highest, self._limit + (1.0 if self._rising else 1.0 / self._limit))

    def refused(self, now: float, started: float, asked: float | None, *, wait: bool) -> float:
        """The server is overloaded: a request that started at `started` was refused, or never answered.
        `asked` is the wait that the server asks for. With `wait` all requests pause also when it asks for
        none. Gives the seconds of the pause."""
        # What was sent before the last fall belongs to the same burst, which has had its fall.
        fresh = started >= self._fell
        if fresh:
            self._fell = now
            self._rising = False
            self._limit = max(1.0, self._limit * FALL)
            self._bursts += 1
        pause = asked or 0.0
        if not asked and wait and fresh:
            pause = backoff(self._bursts, self.first_backoff, self.jitter)
        # A little apart, so that many processes do not come back in the same instant.
        self.pause_until = max(self.pause_until, now + pause + self.jitter.uniform(0, 0.05 * pause))
        return max(0.0, self.pause_until - now)
