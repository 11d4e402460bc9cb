"""problems: get questions from JSONL, JSON, Parquet or the Hub, with a mapping of columns.

Must never call a model."""

from tutelage.problems.columns import without_marks
from tutelage.problems.files import read_problems

__all__ = ["read_problems", "without_marks"]
