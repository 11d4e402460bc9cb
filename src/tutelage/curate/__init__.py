"""curate: choose what to learn from. Every drop keeps its evidence."""

from tutelage.curate.decontaminate import decontaminate
from tutelage.curate.drops import Drop, funnel
from tutelage.curate.duplicates import repeats
from tutelage.curate.rejection import reject

__all__ = ["Drop", "decontaminate", "funnel", "reject", "repeats"]
