"""What the server has done, as numbers for /metrics in Prometheus' text format.

Promises: counters only grow; labels are of our own making, never text of a client.
Does not: keep histories or times of single requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from tutelage.serve.source import Ended

_HELP = {
    "requests_total": "HTTP requests answered, by route and status.",
    "replies_total": "Choices finished, by reason and by what closed their thinking.",
    "cancelled_total": "Requests given up because the client went away or stopped reading.",
    "prompt_tokens_total": "Prompt tokens of finished choices.",
    "completion_tokens_total": "Tokens of finished choices, markers and forced ones included.",
    "thinking_tokens_total": "Thinking tokens of finished choices, sampled or forced.",
    "waits_total": "Wait strings written.",
    "refused_closes_total": "Closes that the model attempted and the policy refused.",
    "reply_core_steps_total": "Passes of the core behind the tokens of finished choices.",
    "streams": "Streams open now.",
}


class Metrics:
    """Counters of one server. All calls come from its event loop."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
        self.streams = 0

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """Add to a counter."""
        self._counts[name, tuple(sorted(labels.items()))] += amount

    def ended(self, end: Ended) -> None:
        """A choice has ended."""
        self.count("replies_total", finish_reason=end.finish_reason, closed_by=end.closed_by)
        self.count("prompt_tokens_total", end.prompt_tokens)
        self.count("completion_tokens_total", end.completion_tokens)
        self.count("thinking_tokens_total", end.sampled, kind="sampled")
        self.count("thinking_tokens_total", end.forced, kind="forced")
        if end.core_steps is not None:
            self.count("reply_core_steps_total", end.core_steps)
        self.count("waits_total", end.waits)
        self.count("refused_closes_total", end.refused)

    def text(self, gauges: Mapping[str, float]) -> str:
        """All counters, then `gauges` of the source."""
        lines = []
        seen = set()
        for (name, labels), value in sorted(self._counts.items()):
            if name not in seen:
                seen.add(name)
                lines += [f"# HELP tutelage_{name} {_HELP[name]}", f"# TYPE tutelage_{name} counter"]
            inside = ",".join(f'{key}="{label}"' for key, label in labels)
            lines.append(f"tutelage_{name}{{{inside}}} {value}" if inside else f"tutelage_{name} {value}")
        for name, number in {"streams": self.streams, **gauges}.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# TYPE tutelage_{name} {kind}", f"tutelage_{name} {number:g}"]
        return "\n".join(lines) + "\n"
