"""Distillation across tokenizers: what is looked at first, and that the student learns."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tinymodel import CHAT, byte_tokenizer, tiny_llama, tiny_student
from tutelage.errors import UsageError
from tutelage.lab.tokenizer import build_tokenizer
from tutelage.records import Problem, Trace
from tutelage.students.pretrained import Student
from tutelage.students.template import Template
from tutelage.tokens import decode_ids, encode_text
from tutelage.train.digits import check_digits, compare_digits, split_number
from tutelage.train.distillation import Distillation, Distilled
from tutelage.train.examples import Example, build_examples
from tutelage.train.settings import Keep, Lora, Optimiser, Progress

# Pairs of letters that a merging tokenizer joins; \u0120 is how byte-level BPE writes a space.
LETTERS = [("t", "h"), ("th", "e"), ("\u0120", "the"), ("i", "n"), ("e", "r")]
DIGITS = [(str(a), str(b)) for a in range(10) for b in range(10)]
QUESTIONS = {f"p{n}": f"the {n} in?" for n in range(8)}


def merging(merges: list[tuple[str, str]], **special: str) -> Any:
    """Byte-level BPE that joins some pairs, with other ids and other control tokens than `byte_tokenizer`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    pieces = [*letters, *dict.fromkeys("".join(pair) for pair in merges)]
    core = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|stop|>", pad_token="<|pad|>")
    tokenizer.add_special_tokens(
        {"extra_special_tokens": ["<|user|>", "<|assistant|>", "<think>", "</think>"]}
    )
    tokenizer.chat_template = CHAT.replace("<|end|>", "<|stop|>")
    return tokenizer


def teacher(merges: list[tuple[str, str]] = LETTERS, **template: Any) -> Student:
    tokenizer = merging(merges)
    return Student(tiny_llama(len(tokenizer), seed=5), tokenizer, Template(**template), "teacher")


START = tiny_student()


def examples() -> list[Example]:
    problems = {name: Problem(name, text) for name, text in QUESTIONS.items()}
    traces = [
        Trace(f"t{n}", f"p{n}", 0, "m", f"the {n}", thinking="in there" + "!" * n)
        for n in range(len(QUESTIONS))
    ]
    return build_examples(START.tokenizer, START.template, problems, traces).examples


def run(
    other: Student,
    *,
    steps: int = 2,
    accumulate: int = 1,
    batch: int = 4,
    lora: Lora | None = None,
    any_numbers: bool = False,
    questions: dict[str, str] | None = None,
    keep: Keep | None = None,
    progress: Progress | None = None,
    **choices: Any,
) -> tuple[Student, Distilled]:
    from tutelage.train.aligned import distill_aligned

    begun = Student(copy.deepcopy(START.model), START.tokenizer, START.template, START.name)
    optimiser = Optimiser(
        steps=steps, batch=batch, accumulate=accumulate, learning_rate=3e-3, schedule="constant",
        warmup_steps=0, lora=lora,
    )  # fmt: skip
    done = distill_aligned(
        begun,
        other,
        examples(),
        questions or QUESTIONS,
        Distillation(**choices),
        optimiser,
        any_numbers=any_numbers,
        keep=keep,
        progress=progress,
    )
    return begun, done


def losses(of: Distilled) -> list[float]:
    return [row["loss"] for row in of.fitted.log if "loss" in row]


def same(a: Student, b: Student, atol: float = 0.0) -> bool:
    pairs = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    return all(torch.allclose(x, y, rtol=0, atol=atol) for x, y in pairs)


def test_numbers_are_read_as_they_stand_in_text() -> None:
    assert split_number(byte_tokenizer(), "123") == ("1", "2", "3")
    assert split_number(merging(DIGITS), "123") == ("12", "3")
    # A space that belongs to the first piece is no difference.
    assert split_number(merging([("\u0120", "1")]), "123") == ("1", "2", "3")
    assert split_number(merging([*DIGITS, ("\u0120", "12")]), "12") == ("12",)


def test_tokenizers_that_split_numbers_differently_are_refused_with_the_figures() -> None:
    ours, theirs = byte_tokenizer(), merging(DIGITS)
    found = compare_digits(ours, theirs)
    # One digit is one piece for both; all numbers of two and more digits in a row differ.
    assert found.looked_at == 1021 and found.share > 0.95
    assert ("123", ("1", "2", "3"), ("12", "3")) in found.different
    assert not any(number in map(str, range(10)) for number, _, _ in found.different)
    table = found.table()
    assert "number" in table.splitlines()[0] and len(table.splitlines()) == 11
    with pytest.raises(
        UsageError, match=r"split 1010 of 1021 numbers differently \(123 is 1·2·3 .*, 12·3 for"
    ) as e:
        check_digits(ours, theirs)
    assert "\n" not in str(e.value) and "numbers: any" in str(e.value)
    assert check_digits(ours, merging(LETTERS)).different == ()


@pytest.mark.slow  # importing TRL's trainers takes seconds
@settings(max_examples=40, deadline=None)
@given(st.text(alphabet="the in!éß漢🙂0123\n", max_size=40))
def test_each_id_stands_at_its_bytes(text: str) -> None:
    from tutelage.train.aligned import byte_spans

    for tokenizer in (byte_tokenizer(), merging(LETTERS)):
        ids = [*encode_text(tokenizer, text), tokenizer.convert_tokens_to_ids("</think>")]
        spans = byte_spans(tokenizer, ids)
        whole = decode_ids(tokenizer, ids).encode("utf-8")
        assert whole == text.encode("utf-8") + b"</think>"
        assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
        assert spans[-1] == (len(whole) - 8, len(whole))


@pytest.mark.slow
def test_the_student_learns_from_a_teacher_with_other_ids() -> None:
    begun, done = run(teacher(), steps=40, beta=0.5)
    assert losses(done)[-1] < 0.6 * losses(done)[0]
    assert not same(begun, START) and done.written == 0
    assert done.tokens_seen > done.tokens_learned > 0


@pytest.mark.slow
def test_accumulating_averages_the_micro_batches() -> None:
    """TRL adds them up."""
    _, one = run(teacher(), batch=4)
    _, two = run(teacher(), batch=4, accumulate=4)
    assert losses(two)[0] == pytest.approx(losses(one)[0], rel=0.2)
    assert one.tokens_learned == two.tokens_learned


@pytest.mark.slow
def test_a_run_that_is_taken_up_again_is_the_same_run(tmp_path: Path) -> None:
    whole, one = run(teacher(), steps=6)
    keep = Keep(tmp_path / "work", "mark", every=2)

    def stop(done: int, total: int, note: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(teacher(), steps=6, keep=keep, progress=stop)
    resumed, two = run(teacher(), steps=6, keep=keep)
    assert losses(one) == losses(two) and same(whole, resumed)
    assert one.tokens_seen == two.tokens_seen


@pytest.mark.slow
def test_the_end_of_the_turn_is_learned() -> None:
    begun, _ = run(teacher(), steps=60, batch=8, beta=0.0)
    row = examples()[0]
    with torch.no_grad():
        logits = begun.model(torch.tensor([row.input_ids])).logits[0]
    assert int(logits[-2].argmax()) == row.labels[-1]


@pytest.mark.slow
def test_the_students_own_replies_are_aligned_too() -> None:
    begun, done = run(teacher(), steps=2, on_policy=1.0, max_new_tokens=12, lora=Lora(rank=2, alpha=4))
    assert done.written == 8 and not same(begun, START)
    assert all(math.isfinite(loss) for loss in losses(done))
    again, _ = run(teacher(), steps=2, on_policy=1.0, max_new_tokens=12, lora=Lora(rank=2, alpha=4))
    assert same(begun, again)


@pytest.mark.slow
def test_what_cannot_be_aligned_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"split .* numbers differently"):
        run(teacher(DIGITS))
    words = build_tokenizer()
    lab = Student(tiny_llama(len(words)), words, Template(), "lab")
    with pytest.raises(UsageError, match="the teacher's tokenizer is not byte-level BPE"):
        run(lab)
    with pytest.raises(UsageError, match=r"closes its thinking with '</think>', the teacher with '</t>'"):
        run(teacher(think_open="<t>", think_close="</t>"))
    with pytest.raises(UsageError, match="batch 9 is more than the 8 examples"):
        run(teacher(), batch=9)
    with pytest.raises(UsageError, match="problem p3: its text holds control tokens of the teacher"):
        run(teacher(), questions={**QUESTIONS, "p3": "say <|stop|> now"})


@pytest.mark.slow
def test_other_numbers_are_aligned_where_the_user_says_so() -> None:
    _, done = run(teacher(DIGITS), any_numbers=True, steps=1)
    assert math.isfinite(losses(done)[0])
