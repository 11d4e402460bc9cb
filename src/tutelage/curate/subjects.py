"""The subjects among which problems are told apart: a code and a title each.

The list of the house is the Mathematics Subject Classification 2020 (its 63 two-digit classes, msc2020.org),
as s1 used it (arXiv 2501.19393, section 2.2), and some other sciences under codes that the classification
leaves free. s1 left out the classes 00 and 01 and had no code for the other sciences: chemistry stood under
92. Whoever wants its list writes it to a file.
Promises: codes and titles are unique (whatever the case), each one line of plain text; the order of a list is
that of its file; what is wrong with a file is one UsageError that names the line.
Does not: put a problem under a subject (`domains` does).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.errors import UsageError
from tutelage.plain import visible
from tutelage.problems.files import file_rows

LONGEST_TITLE = 200
_CODE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,14}[A-Za-z0-9])?")
_TABLES = (".json", ".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Subject:
    """A `code` that a language model answers with (at most 16 letters, digits, and `.`, `_`, `-` between
    them), and the `title` that becomes the domain of a problem."""

    code: str
    title: str


_CLASSIFICATION = """\
00 General and overarching topics; collections
01 History and biography
03 Mathematical logic and foundations
05 Combinatorics
06 Order, lattices, ordered algebraic structures
08 General algebraic systems
11 Number theory
12 Field theory and polynomials
13 Commutative algebra
14 Algebraic geometry
15 Linear and multilinear algebra; matrix theory
16 Associative rings and algebras
17 Nonassociative rings and algebras
18 Category theory; homological algebra
19 K-theory
20 Group theory and generalizations
22 Topological groups, Lie groups
26 Real functions
28 Measure and integration
30 Functions of a complex variable
31 Potential theory
32 Several complex variables and analytic spaces
33 Special functions
34 Ordinary differential equations
35 Partial differential equations
37 Dynamical systems and ergodic theory
39 Difference and functional equations
40 Sequences, series, summability
41 Approximations and expansions
42 Harmonic analysis on Euclidean spaces
43 Abstract harmonic analysis
44 Integral transforms, operational calculus
45 Integral equations
46 Functional analysis
47 Operator theory
49 Calculus of variations and optimal control; optimization
51 Geometry
52 Convex and discrete geometry
53 Differential geometry
54 General topology
55 Algebraic topology
57 Manifolds and cell complexes
58 Global analysis, analysis on manifolds
60 Probability theory and stochastic processes
62 Statistics
65 Numerical analysis
68 Computer science
70 Mechanics of particles and systems
74 Mechanics of deformable solids
76 Fluid mechanics
78 Optics, electromagnetic theory
80 Classical thermodynamics, heat transfer
81 Quantum theory
82 Statistical mechanics, structure of matter
83 Relativity and gravitational theory
85 Astronomy and astrophysics
86 Geophysics
90 Operations research, mathematical programming
91 Game theory, economics, finance, and other social and behavioral sciences
92 Biology and other natural sciences
93 Systems theory; control
94 Information and communication theory, circuits
97 Mathematics education
"""
_OTHERS = """\
71 Atomic, nuclear and particle physics
84 Engineering and materials
87 Earth, climate and environment
88 Chemistry
89 Medicine and health
95 Language and literature
96 Puzzles, riddles and word games
98 Law, history and philosophy
99 Everyday knowledge
"""


def _listed(text: str) -> tuple[Subject, ...]:
    return tuple(Subject(*line.split(" ", 1)) for line in text.splitlines())


MSC = _listed(_CLASSIFICATION)
"""The two-digit classes of the Mathematics Subject Classification 2020."""
SUBJECTS = (*MSC, *_listed(_OTHERS))
"""The list of the house: `MSC`, and sciences beside mathematics under codes of our own choice."""


def read_subjects(path: Path) -> tuple[Subject, ...]:
    """A user's list: objects with `code` and `title` (.jsonl, .json), or, with any other suffix, lines
    `CODE title`. Empty lines are passed over.

    Raises UsageError, with the line or row, for a missing or unreadable file, a code or title that is not as
    `Subject` says, one that is there twice, and an empty list."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file; a list of subjects has a line `CODE title` for each")
    rows = _table(path) if path.suffix in _TABLES else _lines(path)
    try:
        subjects = tuple(_unique(path, rows))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not subjects:
        raise UsageError(f"{path}: the list of subjects is empty; write a line `CODE title` for each")
    return subjects


def _table(path: Path) -> Iterator[tuple[str, Any, Any]]:
    for where, row in file_rows(path):
        for name in ("code", "title"):
            if name not in row:
                raise UsageError(f"{path} {where}: no {name}; a subject has a code and a title")
        yield where, row["code"], row["title"]


def _lines(path: Path) -> Iterator[tuple[str, Any, Any]]:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = raw.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path} line {at}: not UTF-8 (byte 0x{raw[error.start]:02x})") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        code, _, title = line.strip().partition(" ")
        yield f"line {number}", code, title


def _unique(path: Path, rows: Iterable[tuple[str, Any, Any]]) -> Iterator[Subject]:
    seen: dict[tuple[str, str], str] = {}
    for where, code, title in rows:
        subject = _subject(f"{path} {where}", code, title)
        for name, value in (("code", subject.code), ("title", subject.title)):
            earlier = seen.setdefault((name, value.casefold()), where)
            if earlier != where:
                raise UsageError(
                    f"{path} {where}: the {name} {value!r} is on {earlier} already; each must be unique"
                )
        yield subject


def _subject(where: str, code: Any, title: Any) -> Subject:
    for name, value in (("code", code), ("title", title)):
        if not isinstance(value, str):
            raise UsageError(f"{where}: the {name} is {str(value)[:40]!r}; it must be text (in quotes)")
    if not _CODE.fullmatch(code):
        shown = visible(code)[:40]
        raise UsageError(
            f"{where}: the code {shown!r} is not 1 to 16 letters and digits (with . _ - between them)"
        )
    words = " ".join(title.split())
    if not words:
        raise UsageError(f"{where}: the code {code!r} has no title; write `CODE title`")
    if len(words) > LONGEST_TITLE or visible(words) != words:
        raise UsageError(
            f"{where}: the title {visible(words)[:40]!r} is longer than {LONGEST_TITLE} characters, or has"
            " control characters in it"
        )
    return Subject(code, words)
