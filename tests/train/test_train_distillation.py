"""Distillation on random models of a few thousand weights: from saved scores, from a live teacher, and on
what the student writes itself."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tinymodel import byte_tokenizer, tiny_student
from tutelage.errors import UsageError
from tutelage.records import Problem, Trace
from tutelage.students.pretrained import Student
from tutelage.train.distillation import Distillation, Distilled, distill
from tutelage.train.divergence import generalised_jsd
from tutelage.train.examples import IGNORE, Example, build_examples
from tutelage.train.logprobs import ScoreFile
from tutelage.train.scoring import score
from tutelage.train.settings import Keep, Lora, Optimiser

START, TEACHER = tiny_student(), tiny_student(seed=1, closes=3.0)
VOCABULARY = len(START.tokenizer)


def student() -> Student:
    return Student(copy.deepcopy(START.model), START.tokenizer, START.template, START.name)


def examples(count: int = 6) -> list[Example]:
    problems = {f"p{n}": Problem(f"p{n}", "?" * (n % 3)) for n in range(count)}
    traces = [Trace(f"t{n}", f"p{n}", 0, "m", f"{n}" + "!" * (n % 5)) for n in range(count)]
    return build_examples(START.tokenizer, START.template, problems, traces).examples


def run(
    source: Student | ScoreFile,
    rows: list[Example] | None = None,
    *,
    keep: Keep | None = None,
    lora: Lora | None = None,
    steps: int = 3,
    batch: int = 2,
    accumulate: int = 1,
    learning_rate: float = 1e-2,
    schedule: Any = "constant",
    **settings: Any,
) -> tuple[Student, Distilled]:
    begun = student()
    optimiser = Optimiser(
        steps=steps, batch=batch, accumulate=accumulate, learning_rate=learning_rate, schedule=schedule,
        warmup_steps=0, lora=lora,
    )  # fmt: skip
    return begun, distill(begun, rows or examples(), source, Distillation(**settings), optimiser, keep=keep)


def losses(of: Distilled) -> list[float]:
    return [row["loss"] for row in of.fitted.log if "loss" in row]


def same(a: Student, b: Student, atol: float = 0.0) -> bool:
    pairs = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    return all(torch.allclose(x, y, rtol=0, atol=atol) for x, y in pairs)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Files of the teacher's scores on the same examples, by how many ids are kept."""
    folder, found = tmp_path_factory.mktemp("scores"), {}

    def make(k: int) -> ScoreFile:
        if k not in found:
            score(TEACHER, examples(), folder / f"{k}.parquet", top_k=k)
            found[k] = ScoreFile(folder / f"{k}.parquet")
        return found[k]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_first_loss_is_the_mean_divergence_over_the_replies(beta: float) -> None:
    rows = examples(3)
    _, done = run(TEACHER, rows, steps=1, batch=3, beta=beta, temperature=2.0)
    total, places = 0.0, 0
    for row in rows:
        with torch.no_grad():
            ids = torch.tensor([row.input_ids])
            ours, theirs = (each.model(ids).logits[0, :-1] / 2 for each in (START, TEACHER))
        valid = torch.tensor(row.labels[1:]) != IGNORE
        total += float(
            generalised_jsd(theirs[valid].log_softmax(-1), ours[valid].log_softmax(-1), beta).sum()
        )
        places += int(valid.sum())
    assert losses(done)[0] == pytest.approx(total / places, rel=1e-4)
    assert done.tokens_learned == places and done.tokens_seen == sum(len(row.input_ids) for row in rows)


@pytest.mark.slow
def test_the_student_comes_to_write_as_its_teacher_does() -> None:
    _, done = run(TEACHER, examples(2), steps=60)
    assert losses(done)[-1] < 0.2 * losses(done)[0]


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_saved_scores_of_the_whole_vocabulary_train_as_the_live_teacher_does(
    scores: Any, beta: float
) -> None:
    live, one = run(TEACHER, beta=beta)
    saved, two = run(scores(VOCABULARY), beta=beta)
    assert losses(one) == pytest.approx(losses(two), rel=1e-4)
    assert same(live, saved, atol=1e-4)


@pytest.mark.slow
def test_few_saved_ids_teach_most_of_it(scores: Any) -> None:
    _, whole = run(scores(VOCABULARY), steps=30)
    few, done = run(scores(8), steps=30)
    assert losses(done)[-1] < 0.5 * losses(done)[0]
    assert losses(done)[0] < losses(whole)[0]  # a bucket hides what differs within it
    assert not same(few, START)


@pytest.mark.slow
@pytest.mark.parametrize("saved", [False, True])
def test_accumulating_is_the_same_training_in_less_memory(scores: Any, saved: bool) -> None:
    """The rows differ in length, so that a mean of means would differ."""
    source = scores(5) if saved else TEACHER
    whole, one = run(source, batch=6, learning_rate=1e-3)
    parts, two = run(source, batch=6, accumulate=3, learning_rate=1e-3)
    assert losses(one) == pytest.approx(losses(two), rel=1e-4)
    assert same(whole, parts, atol=1e-4)
    assert one.tokens_learned == two.tokens_learned


@pytest.mark.slow
def test_the_students_own_replies_are_learned_where_it_wrote_them() -> None:
    rows = examples(4)
    begun, done = run(TEACHER, rows, steps=3, on_policy=1.0, max_new_tokens=40, beta=1.0)
    assert done.written == 6 and not same(begun, START)
    # Six replies of at most 40 ids, whatever the traces say; forced closes are fed and not learned.
    assert 0 < done.tokens_learned <= 6 * 40 < done.tokens_seen + 6 * 40
    again, twice = run(TEACHER, rows, steps=3, on_policy=1.0, max_new_tokens=40, beta=1.0)
    assert same(begun, again) and losses(done) == losses(twice)


@pytest.mark.slow
def test_the_share_of_own_replies_is_of_micro_batches() -> None:
    _, none = run(TEACHER, steps=2, batch=4, accumulate=2)
    assert none.written == 0
    _, some = run(TEACHER, steps=10, batch=4, accumulate=2, on_policy=0.5, max_new_tokens=36)
    assert 0 < some.written < 40 and some.written % 2 == 0


@pytest.mark.slow
@pytest.mark.parametrize("on_policy", [0.0, 0.5])
def test_a_run_that_is_taken_up_again_is_the_same_run(tmp_path: Path, on_policy: float) -> None:
    settings = {"steps": 6, "on_policy": on_policy, "max_new_tokens": 36}
    whole, one = run(TEACHER, **settings)
    begun = student()
    optimiser = Optimiser(steps=6, batch=2, learning_rate=1e-2, schedule="constant", warmup_steps=0)
    keep = Keep(tmp_path / "work", "mark", every=2)

    def stop(done: int, total: int, note: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    choice = Distillation(on_policy=on_policy, max_new_tokens=36)
    with pytest.raises(KeyboardInterrupt):
        distill(begun, examples(), TEACHER, choice, optimiser, keep=keep, progress=stop)
    resumed, two = run(TEACHER, keep=keep, **settings)
    assert losses(one) == losses(two) and same(whole, resumed)
    assert (one.tokens_seen, one.tokens_learned, one.written) == (
        two.tokens_seen, two.tokens_learned, two.written,
    )  # fmt: skip


@pytest.mark.slow
def test_an_adapter_is_trained_and_merged() -> None:
    begun, done = run(TEACHER, steps=8, lora=Lora(rank=4, alpha=8), on_policy=0.5, max_new_tokens=36)
    assert list(begun.model.state_dict()) == list(START.model.state_dict())
    changed = {
        name
        for name, value in begun.model.state_dict().items()
        if not torch.equal(value, START.model.state_dict()[name])
    }
    assert changed == {name for name in START.model.state_dict() if "proj" in name}
    assert done.written > 0


@pytest.mark.slow
def test_a_teacher_with_more_rows_than_the_tokenizer_has_ids_is_read_up_to_them() -> None:
    padded = Student(copy.deepcopy(TEACHER.model), TEACHER.tokenizer, TEACHER.template, "padded")
    padded.model.resize_token_embeddings(VOCABULARY + 13, mean_resizing=False)
    assert losses(run(padded)[1]) == pytest.approx(losses(run(TEACHER)[1]), rel=1e-5)


@pytest.mark.slow
def test_a_loss_that_is_no_number_names_the_traces() -> None:
    broken = Student(copy.deepcopy(TEACHER.model), TEACHER.tokenizer, TEACHER.template, "broken")
    with torch.no_grad():
        next(broken.model.parameters()).fill_(math.nan)
    with pytest.raises(UsageError, match=r"not a number at step 1 \(t\d, t\d\)"):
        run(broken)


def test_a_teacher_that_does_not_fit_is_refused_in_one_line(scores: Any) -> None:
    other = tiny_student(think_tokens=False)
    with pytest.raises(
        UsageError, match=r"another tokenizer .* aligned: true, or train on .*\(sft\)"
    ) as caught:
        run(other)
    assert "\n" not in str(caught.value)
    saved = scores(3)
    with pytest.raises(UsageError, match="on_policy needs a live teacher"):
        run(saved, on_policy=0.5)
    with pytest.raises(UsageError, match="temperature 2 needs a live teacher"):
        run(saved, temperature=2.0)
    with pytest.raises(UsageError, match="no scores of trace t6"):
        run(saved, examples(7))
    small = Student(copy.deepcopy(TEACHER.model), byte_tokenizer(), TEACHER.template, "small")
    small.model.resize_token_embeddings(VOCABULARY - 3)
    with pytest.raises(UsageError, match=r"the teacher scores \d+ ids, its tokenizer has \d+; resize"):
        run(small)
    with pytest.raises(UsageError, match="no example to train on"):
        distill(student(), [], TEACHER, Distillation(), Optimiser(steps=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": -0.1}, r"beta is -0\.1"),
        ({"on_policy": 1.5}, r"on_policy is 1\.5"),
        ({"temperature": 0}, "temperature is 0; it must be above 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Distillation(**settings)
