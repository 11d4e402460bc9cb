"""Quality rules: each on and off, its threshold, its evidence, and hostile texts."""

import time
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.curate import quality
from tutelage.curate.quality import RULES, Fault, Settings, all_faults, faults
from tutelage.errors import UsageError

QUESTION = (
    "Let $f(x) = x^2 - 4x + 7$. Find the least value of $f$ on $[0, 5]$, if f(a) = f(b) for some a < b.\n\n"
    "| x | f(x) |\n| --- | --- |\n| 0 | 7 |\n\n    def f(x): return x ** 2 - 4 * x + 7  # not 2**3 or 5![\n"
)
THINKING = (
    "We complete the square: x² − 4x + 7 = (x − 2)² + 3, so f is least at x = 2, which lies in [0, 5].\n\n"
    "Wait, let me check the ends: f(0) = 7 and f(5) = 25 − 20 + 7 = 12. Both are above 3, so α = 3 it is.\n"
    "Is the minimum attained? Yes, at x = 2 ∈ [0, 5], and ℝ is not needed at all. Hmm, „naïve“ but fine.\n"
)
ANSWER = "The least value is $\\boxed{3}$."


def rows(*changes: dict[str, Any], **columns: list[Any]) -> pa.Table:
    """A batch with a clean row for each of `changes`, changed by it."""
    clean = {"question": QUESTION, "thinking": THINKING, "answer": ANSWER, "finish_reason": "stop"}
    made = [clean | change for change in changes]
    names = dict.fromkeys(name for row in made for name in row)
    return pa.table(
        {name: pa.array([row.get(name) for row in made], pa.string()) for name in names} | columns
    )


def only(*names: str, **more: Any) -> Settings:
    return Settings(off=tuple(rule for rule in RULES if rule not in names), **more)


CHINESE = "所以我们需要再检查一次这个答案是否正确然后给出最后的结果"
LOOP = THINKING + "Wait, maybe I should check this once more before I go on here. " * 30
BAD: dict[str, list[dict[str, Any]]] = {
    "failed": [{"finish_reason": name} for name in ("error", " Content_Filter\n", "SAFETY")],
    "cut": [{"finish_reason": "length"}, {"finish_reason": "MAX_TOKENS"}],
    "missing": [
        {"question": None},
        {"question": " \n\t\u00a0\u3000\u200b"},
        {"answer": None},
        {"answer": ""},
    ],
    "too-long": [{"answer": "7 " * 1_000_001}, {"question": "é" * 2_000_001}],
    "too-short": [],
    "multi-part": [
        {"question": "**p1.** What is 2 + 2?\n\n**p2.** And 3 + 3?"},
        {"question": "p12. Find x."},
        {"question": "Read **Problem 3** and solve it."},
        {"question": "Let x = 4.\n(a) Find 2x.\n(b) Find x / 2."},
    ],
    "image": [
        {"question": "What is this? ![Image](a.png)"},
        {"question": "![]"},
        {"question": 'How many <IMG src="a.png"> cats?'},
        {"question": "\\includegraphics{a} What is the area?"},
        {"question": "[asy] draw((0,0)--(1,1)); [/asy] What is the length?"},
        {"question": "How high is it?\n   /\\\n  /  \\___\n /________\\\n/          \\\n"},
        {"question": "Read this:\n┌────┐\n│ 12 │\n├────┤\n│ 30 │\n└────┘\n"},
    ],
    "figure": [
        {"question": "In the figure, ABC is a triangle. What is its area?"},
        {"question": "The graph shown below has two roots. What are they?"},
        {"question": "As depicted in the diagram, AB = 3. What is BC?"},
        {"question": "See Figure 2. How long is AB?"},
        {"question": "Use the following chart to find the mean."},
    ],
    "leak": [
        {"question": "What is 2 + 2?\nAnswer: 4"},
        {"question": "What is 2 + 2? ANSWER : **4**", "gold": "4"},
        {"question": "Write it as Answer: N. What is 2 + 2? Answer: \\boxed{4}", "gold": "4"},
    ],
    "encoding": [
        {"question": "What does caf\ufffd cost?"},
        {"thinking": "The cafÃ© costs 3."},
        {"answer": "It isnâ€™t 4."},
        {"answer": "$\x0crac{1}{2}$"},
        {"thinking": "\ue000 and \x85"},
        {"thinking": "Ð¿Ñ€Ð¸Ð²ÐµÑ‚"},
    ],
    "language": [
        {"thinking": THINKING + CHINESE},
        {"answer": "Наименьшее значение равно трём."},
        {"question": "Найдите наименьшее значение.", "answer": CHINESE},
        {"question": "3 + 4 = ?", "thinking": "Сложим три и четыре, получим семь. " + CHINESE},
    ],
    "loop": [
        {"thinking": LOOP},
        {"thinking": LOOP[:-17]},
        {"thinking": "ab" * 20_000},
        {"thinking": "所以我们需要再检查一次。" * 40},
        {"thinking": THINKING * 2},
        {"thinking": " ".join(map(str, range(2000))) + " and so it goes on, no end in sight, and on;" * 6},
    ],
}  # fmt: skip
ALL_BAD = [(rule, change) for rule in RULES for change in BAD[rule]]


def test_a_clean_trace_breaks_no_rule() -> None:
    table = rows({}, {"thinking": None}, {"finish_reason": None}, {"gold": "3", "source": "gsm8k"})
    assert all_faults(table) == []


@pytest.mark.parametrize(("rule", "change"), ALL_BAD)
def test_each_rule_finds_what_it_is_for_and_can_be_switched_off(rule: str, change: dict[str, Any]) -> None:
    table = rows({}, change, {})
    (fault,) = faults(table, only(rule))
    assert (fault.row, fault.rule) == (1, rule)
    assert fault.reason and fault.reason.isprintable() and len(fault.reason) < 500
    assert rule in [each.rule for each in all_faults(table)]
    assert rule not in [each.rule for each in all_faults(table, Settings(off=(rule,)))]


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("failed", {"finish_reason": "tool_calls"}),
        ("cut", {"finish_reason": "unknown"}),
        ("missing", {"thinking": ""}),
        ("too-long", {"answer": "é" * 2_000_000}),
        ("multi-part", {"question": "2 ** 3 ** 2? And f (a) + f (b)? **Hint:** p1.5, 3**2**1, 2 **b** 4"}),
        ("multi-part", {"question": "Which holds? (A) one (B) two **Choose** 1 **letter**"}),
        ("image", {"question": "5![3] or n![k]?\n----\n====\n+----+\n| ab |\n+----+\n" + "\\\\\n" * 4}),
        ("figure", {"question": "Ann has to figure out how many vertices in the graph have a 3 figure sum."}),
        ("figure", {"question": "In the figure, what is AB? [asy] draw((0,0)--(1,1)); [/asy]"}),
        ("leak", {"question": "End with Answer: [number] or Answer: \\boxed{}. Answer: ___ Answer:"}),
        ("leak", {"question": "What is 2 + 2? Answer: A, B, C or D. Answer: 42", "gold": "4"}),
        ("encoding", {"question": "« Été » déjà à « ÇA », É. “AMANHÔ… e NÃO, 5 £, 20 °C, ñandú, ½\r\n\t"}),
        ("language", {"thinking": "数 naïve αβγδεζηθικλμνξοπρστυφχψω ℝℕℤ 𝑥𝑦𝑧𝑎𝑏𝑐𝑑𝑒𝑓𝑔𝑖𝑗𝑘𝑙𝑚𝑛𝑜𝑝𝑞𝑟𝑠𝑡𝑢𝑣𝑤"}),
        ("language", {"question": "Translate: Сколько будет?", "answer": "Сколько будет два и два?"}),
        ("language", {"question": "求最小值。", "thinking": "所以最小值是 3, therefore we are done."}),
        ("loop", {"thinking": "0 " * 11}),
        ("loop", {"thinking": THINKING + " ".join(f"Case {n}: the square is {n * n}." for n in range(99))}),
        ("loop", {"thinking": " ".join(map(str, range(99))) + " It is three, so the answer is three." * 3}),
    ],
)  # fmt: skip
def test_what_only_looks_like_it_stays(rule: str, change: dict[str, Any]) -> None:
    assert faults(rows(change), only(rule)) == []


@pytest.mark.parametrize(
    ("rule", "change", "strict", "lenient"),
    [
        ("failed", {"finish_reason": "timeout"}, {"failed": ("timeout",)}, {}),
        ("missing", {"thinking": " "}, {"need_thinking": True}, {}),
        ("too-long", {"question": "1", "thinking": "", "answer": "1234"}, {"most_characters": 3},
         {"most_characters": 4}),
        ("too-long", {"thinking": "a b c d"}, {"most_words": 3}, {"most_words": 4}),
        ("too-short", {"thinking": "a b c d"}, {"least_words": 5}, {"least_words": 4}),
        ("too-short", {"thinking": None}, {"least_words": 1}, {"least_words": 0}),
        ("image", {"question": "[asy] [/asy]", "source": "aime"}, {}, {"asy_sources": ("aime",)}),
        ("image", {"question": "x\n\\____/\n/----\\\n"}, {"art_lines": 2}, {"art_lines": 3}),
        ("image", {"question": "x\n\\____/\n/----\\\n"}, {"art_lines": 1}, {"art_lines": None}),
        ("encoding", {"answer": "\ufffd \ufffd"}, {"damage": 2}, {"damage": 3}),
        ("language", {"answer": "x да"}, {"foreign_letters": 2}, {"foreign_letters": 3}),
        ("language", {"answer": "x " + "да" * 20}, {"foreign_share": 0.97}, {"foreign_share": 0.98}),
        ("loop", {"thinking": "a b c a b c"}, {"loop_width": 3, "loop_share": 0.2}, {"loop_width": 3}),
        ("loop", {"thinking": "1 2 3 " + "a b c " * 4 + "a"},
         {"loop_width": 3, "loop_share": 1, "loop_turns": 3},
         {"loop_width": 3, "loop_share": 1, "loop_turns": 4}),
    ],
)  # fmt: skip
def test_each_threshold_decides(
    rule: str, change: dict[str, Any], strict: dict[str, Any], lenient: dict[str, Any]
) -> None:
    (fault,) = faults(rows(change), only(rule, **strict))
    assert (fault.row, fault.rule) == (0, rule)
    assert faults(rows(change), only(rule, **lenient)) == []


def test_the_first_rule_in_the_order_decides_and_all_are_told() -> None:
    change = {
        key: value for rule in reversed(RULES) for found in BAD[rule][:1] for key, value in found.items()
    }
    table = rows(
        {**change, "question": "p1. In the figure ![]() Answer: 4 \ufffd", "thinking": LOOP, "answer": ""}
    )
    found = [fault.rule for fault in all_faults(table, Settings(need_thinking=True, least_words=10_000))]
    assert found == [
        "failed", "missing", "too-short", "multi-part", "image", "figure", "leak", "encoding", "loop",
    ]  # fmt: skip
    for turn, rule in enumerate(found):
        (first,) = faults(table, Settings(least_words=10_000, off=tuple(found[:turn])))
        assert first.rule == rule


def test_evidence_names_the_place() -> None:
    table = rows(
        {"question": "é" * 120 + " ![x](y) What is this?"},
        {"answer": "It is \ufffd."},
        {"answer": "Да: наименьшее значение равно трём."},
        {"thinking": "é " + "one two three four " * 30 + "on"},
        {"thinking": "7 " * 1_000_001},
        {"finish_reason": "error"},
        {"answer": " ", "question": None},
    )
    found = {fault.row: fault for fault in faults(table)}
    assert found[0].reason.startswith("'![x](y)' in the question at character 121: …é")
    assert found[0].reason.endswith("What is this?") and found[0].score is None
    assert found[1].reason == "U+FFFD in the answer at character 6: It is \ufffd."
    assert found[2].reason == (
        "29 letters (100%) of the answer are not in the question's script: Cyrillic at character 0: "
        "Да: наименьшее значение равно трём."
    )
    assert found[2].score == 1.0
    assert found[3].reason == (
        "95% of the runs of 12 words in the thinking occurred before, and its end repeats 10 times in a row; "
        "28 times, first at byte 3: 'one two three four one two three four one two three four'"
    )
    assert found[3].score == pytest.approx(105 / 111, abs=1e-4)
    assert found[4].reason == "the thinking has 2,000,002 characters; at most 2,000,000 are read"
    assert found[5].reason == "finish_reason is 'error': the call failed"
    assert found[6].reason == "no question and no answer"


def test_a_monster_is_measured_and_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monster = "\ufffd![](" * 3_000_000
    table = rows({}, {"thinking": monster, "question": monster}, {"answer": "\ufffd"})
    seen: list[int] = []
    for name in ("loops", "word_counts", "foreign"):
        inner = getattr(quality, name)

        def watched(texts: pa.Array, *rest: Any, inner: Any = inner, **more: Any) -> Any:
            seen.append(texts.nbytes)
            return inner(texts, *rest, **more)

        monkeypatch.setattr(quality, name, watched)
    found = all_faults(table, Settings(least_words=1))
    assert [(fault.row, fault.rule) for fault in found] == [(1, "too-long"), (2, "encoding")]
    assert len(seen) == 4 and max(seen) < 10_000
    assert len(found[0].reason) < 100


@pytest.mark.parametrize(
    "text",
    ["a" * 1_900_000, " " * 1_900_000, "\x00" * 1_900_000, "![" * 900_000, "**1" * 600_000,
     " (a) " * 300_000 + "p1.",
     "answer: " * 200_000, "/\\\n" * 600_000, "所" * 600_000, "<script>\u202e\u2028" * 100_000],
)  # fmt: skip
def test_hostile_texts_take_no_time_to_speak_of(text: str) -> None:
    begin = time.perf_counter()
    found = all_faults(rows({"question": text, "thinking": text, "answer": text, "finish_reason": text}))
    assert time.perf_counter() - begin < 10  # what is quadratic takes hours
    assert all(fault.reason.isprintable() and len(fault.reason) < 500 for fault in found)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"off": ("loops",)}, "there is no rule 'loops'; the rules are failed, cut"),
        ({"off": "loop"}, "quality.off is 'loop'; it must be a list of names"),
        ({"failed": (1,)}, "quality.failed is"),
        ({"need_thinking": 1}, "need_thinking is 1; it must be true or false"),
        ({"most_characters": 0}, "most_characters is 0; it must be a whole number from 1 on"),
        ({"most_characters": None}, "most_characters is None"),
        ({"loop_width": 1}, "loop_width is 1; it must be a whole number from 2 on"),
        ({"damage": True}, "damage is True"),
        ({"loop_turns": 2.5}, "loop_turns is 2.5"),
        ({"loop_share": 1.5}, "loop_share is 1.5; it must be a number from 0 to 1"),
        ({"foreign_share": float("nan")}, "foreign_share is nan"),
        ({"foreign_share": None}, "foreign_share is None"),
        ({"least_words": 9, "most_words": 8}, "least_words is 9, above most_words, 8"),
    ],
)
def test_settings_out_of_range_are_refused(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Settings(**given_)


def test_batches_that_are_not_traces_are_refused() -> None:
    with pytest.raises(
        UsageError, match="no column 'answer'; columns there: question, thinking, finish_reason"
    ):
        faults(rows({}).drop_columns(["answer"]))
    numbers = rows({}).set_column(1, "thinking", pa.array([3]))
    with pytest.raises(UsageError, match="column 'thinking' holds int64; it must hold texts"):
        faults(numbers)


def test_every_kind_of_string_column_and_an_empty_batch() -> None:
    table = rows({}, {"answer": None}, {"finish_reason": "length"}, {"thinking": LOOP})
    wanted = [(1, "missing"), (2, "cut"), (3, "loop")]
    for of in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        again = pa.table({name: table[name].cast(of) for name in table.column_names})
        assert [(fault.row, fault.rule) for fault in faults(again)] == wanted
    assert faults(table.slice(0, 0)) == [] and faults(pa.concat_tables([table, table])[4:]) == faults(table)
    nothing = pa.table({name: pa.nulls(2) for name in table.column_names})
    assert [(fault.row, fault.rule) for fault in faults(nothing)] == [(0, "missing"), (1, "missing")]


PIECES = st.sampled_from(
    [change for rule, change in ALL_BAD if rule not in ("too-long", "loop")]
    + [{"thinking": LOOP}, {"thinking": "所以" * 30}, {"thinking": "a" * 70_000}]
    + [
        {},
        {"source": "aime", "question": "[asy]"},
        {"thinking": "é" * 3},
        {"thinking": None},
        {"answer": "\ud7ff"},
    ]
)


@settings(max_examples=20, deadline=None)
@given(st.lists(PIECES, max_size=8), st.integers(0, 8))
def test_faults_do_not_depend_on_how_rows_are_batched(changes: list[dict[str, Any]], cut: int) -> None:
    strict = Settings(asy_sources=("aime",), least_words=2)
    whole = rows(*changes, {"gold": "4", "source": "x"})
    cut = min(cut, len(whole))
    for ask in (faults, all_faults):
        left, right = ask(whole.slice(0, cut), strict), ask(whole.slice(cut), strict)
        moved = [Fault(fault.row + cut, fault.rule, fault.reason, fault.score) for fault in right]
        assert ask(whole, strict) == left + moved
    first, every = faults(whole, strict), all_faults(whole, strict)
    assert sorted({fault.row for fault in every}) == [fault.row for fault in first]
    assert set(first) <= set(every) and max(Counter((f.row, f.rule) for f in every).values(), default=1) == 1
