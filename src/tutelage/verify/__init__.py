"""verify: is it right? Verdicts by exact text, number, mathematics, or the user's own function.

Must never crash or hang on any text."""

from tutelage.verify.cascade import CHECKERS, check_trace, judge, require_checkers, verify
from tutelage.verify.quantities import extract_number
from tutelage.verify.user import absolute, is_user_checker, load_function
from tutelage.verify.workers import WorkerPool

__all__ = [
    "CHECKERS",
    "WorkerPool",
    "absolute",
    "check_trace",
    "extract_number",
    "is_user_checker",
    "judge",
    "load_function",
    "require_checkers",
    "verify",
]
