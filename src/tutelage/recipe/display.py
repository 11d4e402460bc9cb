"""What a person sees while a recipe runs.

Promises: on a terminal an overall bar with the time left and one line per running job; elsewhere plain
lines, one per event and one every 15 s; text of jobs is shown as it is, never as markup or terminal control.
Does not: write to stdout, or keep anything.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PLAIN_EVERY_S = 15.0


@dataclass
class Running:
    """A job on the screen."""

    began: float
    stamp: str = ""
    done: int = 0
    total: int = 0
    note: str = ""

    @property
    def fraction(self) -> float:
        """Share that is done, 0 when the job has not said."""
        return min(self.done / self.total, 1.0) if self.total > 0 else 0.0

    def text(self) -> str:
        """`30% (60/200) loss 1.2`."""
        return f"{self.fraction:.0%} ({self.count}) {self.note}" if self.total > 0 else self.note

    @property
    def count(self) -> str:
        """`60/200`, "" when the job has not said."""
        return f"{self.done:,}/{self.total:,}" if self.total > 0 else ""


@dataclass
class Display:
    """The view of one run. `console` None shows nothing; `total` counts jobs."""

    console: Console | None
    total: int
    done: int = 0
    running: dict[str, Running] = field(default_factory=dict)
    left_s: float | None = None
    _live: Live | None = None
    _last_plain: float = 0.0

    def __enter__(self) -> Display:
        self._last_plain = time.monotonic()
        if self.console is not None and self.console.is_terminal:
            self._live = Live(
                get_renderable=self._table, console=self.console, transient=True, refresh_per_second=4
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """One line that stays."""
        if self.console is not None:
            stamp = time.strftime("%H:%M:%S")
            self.console.print(Text(f"{stamp} {printable(text)}"), soft_wrap=True)

    def started(self, job_id: str) -> None:
        """A job went to a worker."""
        stamp = datetime.now().astimezone().isoformat(timespec="seconds")
        self.running[job_id] = Running(time.monotonic(), stamp)
        if self._live is None:
            self.say(f"{job_id} starts")

    def progress(self, job_id: str, done: int, total: int, note: str) -> None:
        """What a job says about itself."""
        seen = self.running[job_id]
        seen.done, seen.total, seen.note = done, total, note

    def ended(self, job_id: str, how: str) -> None:
        """A job left its worker; `how` says with what result. Only finished jobs count as `done`."""
        self.running.pop(job_id, None)
        self.say(f"{job_id} {how} ({self.done}/{self.total}{self._left(', ')})")

    def tick(self, left_s: float | None) -> None:
        """Called a few times a second; `left_s` is the estimate of the time left."""
        self.left_s = left_s
        if self.console is None or self._live is not None or not self.running:
            return
        if time.monotonic() - self._last_plain >= PLAIN_EVERY_S:
            self._last_plain = time.monotonic()
            now = "; ".join(f"{name} {each.text()}".strip() for name, each in self.running.items())
            alone = self.total == 1  # a verb: its own numbers are the numbers
            self.say(now if alone else f"{self.done}/{self.total} jobs{self._left(', ')}; running: {now}")

    def _left(self, before: str) -> str:
        return f"{before}about {duration(self.left_s)} left" if self.left_s is not None else ""

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        share = sum(each.fraction for each in self.running.values())
        bar = ProgressBar(total=max(self.total, 1), completed=self.done + share, width=30)
        if self.total > 1:
            table.add_row(Text(f"{self.done}/{self.total} jobs"), bar, Text(self._left("")))
        for name, each in self.running.items():
            inner = ProgressBar(total=1.0, completed=each.fraction, width=30, pulse=each.total <= 0)
            seconds = duration(time.monotonic() - each.began)
            said = "  ".join(part for part in (each.count, seconds, each.note) if part)
            note = Text(printable(said), no_wrap=True, overflow="ellipsis")
            table.add_row(Text(f"  {printable(name)}"), inner, note)
        return table


def duration(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 3600:
        return f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def printable(text: str) -> str:
    """`text` without characters that steer a terminal."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)
