r"""Inputs made to hurt a checker, with the verdicts that are acceptable.

Right answers in awkward clothes must be right or at least open; what has no value must never be right; a
right answer that cannot be finished in time must be open, never wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

RIGHT = frozenset({"correct"})
RIGHT_OR_OPEN = frozenset({"correct", "undecided"})
WRONG = frozenset({"incorrect"})
NOT_RIGHT = frozenset({"incorrect", "undecided"})
MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Nasty:
    """One case. `allowed` are the verdicts that are acceptable."""

    name: str
    kind: str
    answer: str
    gold: str
    allowed: frozenset[str]


def _boxed(text: str) -> str:
    return rf"\boxed{{{text}}}"


def _nest(opening: str, inner: str, closing: str, depth: int) -> str:
    return opening * depth + inner + closing * depth


_TRIG = "+".join(rf"\sin^2({i}x)+\cos^2({i}x)" for i in range(1, 31))
_MATRIX = r"\begin{pmatrix}" + r"\\".join(["&".join("1" * 20)] * 20) + r"\end{pmatrix}"
_BOTH = [
    ("prose 10 MB, then A: 18", "word " * (2 * MB) + "\nA: 18", "18", RIGHT),
    ("prose 10 MB, then The total is 18.", "word " * (2 * MB) + "\nThe total is 18.", "18", RIGHT),
    ("prose 10 MB on one line, then 18", "word " * (2 * MB) + "18", "18", RIGHT),
    ("full-width 18", "１８", "18", RIGHT),
    ("zero-width mark inside 18", "1\u200b8", "18", RIGHT),
    ("zero-width marks around 18", "\u200b18\ufeff", "18", RIGHT),
    ("right-to-left mark before 18", "\u200f18", "18", RIGHT),
    ("right-to-left override of 81", "\u202e81", "18", WRONG),
    ("Arabic-Indic 18", "١٨", "18", RIGHT),
    ("Unicode minus", "−18", "-18", RIGHT),
    ("NUL after 18", "18\x00", "18", RIGHT),
    ("lone surrogate after 18", "18\ud800", "18", RIGHT),
    ("box never closed", r"\boxed{18", "18", RIGHT),
    ("box never closed, 2,000 times", r"\boxed{18 " * 2000, "18", RIGHT_OR_OPEN),
    ("boxes, 10 MB", _boxed("1") * MB, "1", RIGHT),
    ("opening braces, 10 MB, after \\boxed", r"\boxed" + "{" * (10 * MB), "18", NOT_RIGHT),
    ("digits, 10 MB", "1" * (10 * MB), "18", NOT_RIGHT),
    ("digits after the point, 1 MB", "0." + "3" * MB, "1/3", NOT_RIGHT),
    ("10^{10^9}", "10^{10^9}", "18", NOT_RIGHT),
    ("1e999999999", "1e999999999", "18", NOT_RIGHT),
    ("1e999999999 for 1", "1e999999999", "1", NOT_RIGHT),
    ("1e-999", "1e-999", "0", WRONG),
    ("NaN = NaN", "nan", "nan", NOT_RIGHT),
    ("inf = inf", "inf", "inf", NOT_RIGHT),
    ("0/0 = 0/0", "0/0", "0/0", NOT_RIGHT),
    ("1/0 = 1/0", "1/0", "1/0", NOT_RIGHT),
    ("HTML around 18", "<b>18</b><script>alert(1)</script>\n18", "18", RIGHT),
    ("control tokens after 18", "The answer is 18<|im_end|></think>", "18", RIGHT),
    ("Python that attacks", "__import__('os').system('true')", "18", NOT_RIGHT),
    ("emoji, 10 MB", "\U0001f600" * (10 * MB // 4), "18", NOT_RIGHT),
]
_MATH = [
    ("power tower, boxed", _boxed("9^{9^{9^{9}}}"), "18", NOT_RIGHT),
    ("power tower, plain", "9^9^9^9", "18", NOT_RIGHT),
    ("power tower = itself", "9^{9^{9^{9}}}", "9^{9^{9^{9}}}", RIGHT_OR_OPEN),
    ("factorial of factorial", "((9!)!)!", "18", NOT_RIGHT),
    ("(10^7)!", "(10^7)!", "18", NOT_RIGHT),
    ("binomial of 10^7", r"\binom{10000000}{5000000}", "18", NOT_RIGHT),
    ("sum to 10^9", r"\sum_{k=1}^{1000000000} k^{-2}", "18", NOT_RIGHT),
    ("integral", r"\int_0^1 \sin(x^{x^{x}})\,dx", "18", NOT_RIGHT),
    ("trig identity, 30 terms", _boxed(_TRIG), "30", RIGHT_OR_OPEN),
    (r"nested \frac, 500 deep", _nest(r"\frac{1}{1+", "1", "}", 500), "18", NOT_RIGHT),
    (r"nested \frac, 2,000 deep", _nest(r"\frac{1}{1+", "1", "}", 2000), "18", NOT_RIGHT),
    ("nested \\sqrt, 60 deep, equals 2", _nest(r"\sqrt{2+", "2", "}", 60), "2", RIGHT_OR_OPEN),
    ("brackets around 1, 500 deep", _nest("(", "1", ")", 500), "1", RIGHT),
    ("brackets around x+1, 500 deep", _nest("(", "x+1", ")", 500), "1+x", RIGHT),
    ("brackets around 1, 20,000 deep", _nest("(", "1", ")", 20_000), "1", RIGHT_OR_OPEN),
    ("brackets never closed, 1 MB", "(" * MB + "1", "1", RIGHT_OR_OPEN),
    ("braces, 2,000 deep", _boxed(_nest("{", "1", "}", 2000)), "1", RIGHT_OR_OPEN),
    ("1+1+..., 1 MB, boxed", _boxed("1+" * (MB // 2) + "1"), str(MB // 2 + 1), RIGHT_OR_OPEN),
    ("1+1+..., 2 kB, boxed", _boxed("1+" * 1000 + "1"), "1001", RIGHT_OR_OPEN),
    ("list of 3,000 numbers", ", ".join(map(str, range(3000))), "18", NOT_RIGHT),
    ("list of 800 numbers, boxed", _boxed(", ".join(map(str, range(800)))), "18", NOT_RIGHT),
    ("2^{-98} for 2^{-99}", "2^{-98}", "2^{-99}", NOT_RIGHT),
    ("1/2006! for 1/2004!", r"\frac{1}{2006!}", r"\frac{1}{2004!}", NOT_RIGHT),
    ("1+1/e for 1-1/e", r"1+\frac{1}{\mathrm{e}}", r"1-\frac{1}{\mathrm{e}}", NOT_RIGHT),
    ("3x+4y+14=0 for 3*x-1*y+13=0", "3x+4y+14=0", "3*x-1*y+13=0", NOT_RIGHT),
    ("18.0000001 for 18", "18.0000001", "18", NOT_RIGHT),
    ("polynomial to the 3,000th", "(x+1)^{3000}", "x^{3000}+1", NOT_RIGHT),
    ("matrix, 20 x 20", _MATRIX, "18", NOT_RIGHT),
    ("unknown commands, 4 kB", r"\foo" * 900, "18", NOT_RIGHT),
    ("dollar signs, 4 kB", "$" * 3900, "18", NOT_RIGHT),
    ("carets, 4 kB", "x" + "^x" * 1900, "18", NOT_RIGHT),
]  # fmt: skip
NASTY = [Nasty(name, kind, *case) for name, *case in _BOTH for kind in ("number", "math")]
NASTY += [Nasty(name, "math", *case) for name, *case in _MATH]
