"""curate: choose what to learn from. Every drop keeps its evidence."""

from tutelage.curate.decontaminate import Drop, decontaminate, too_short
from tutelage.curate.funnel import funnel
from tutelage.curate.rejection import TraceDrop, reject

__all__ = ["Drop", "TraceDrop", "decontaminate", "funnel", "reject", "too_short"]
