"""Subjects by the words of questions."""

import random
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.curate.clusters import OTHER, cluster, vectors
from tutelage.errors import UsageError

TOPICS = {
    "train": "a train leaves the station at speed {} miles per hour and travels {} miles to the city by rail",
    "apples": "the farmer picks {} apples from the orchard and sells {} baskets of fruit at the market",
    "chess": "a bishop and a knight attack {} squares of the chess board in {} moves by the white king",
}


def asked(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Questions of three topics, some words left out, and their topics."""
    rng = random.Random(seed)
    topics = [rng.choice(list(TOPICS)) for _ in range(count)]
    texts = []
    for topic in topics:
        words = TOPICS[topic].format(rng.randrange(10, 99), rng.randrange(10, 99)).split()
        texts.append(" ".join(word for word in words if rng.random() < 0.8))
    return texts, topics


def test_topics_fall_into_clusters_named_by_their_words() -> None:
    texts, topics = asked(300)
    labels = cluster(texts, clusters=3)
    pairs = set(zip(topics, labels, strict=True))
    assert len(pairs) == 3 and len({label for _, label in pairs}) == 3
    for topic, label in pairs:
        assert len(label.split()) == 3 and all(word in TOPICS[topic] for word in label.split())


def test_numbers_do_not_matter() -> None:
    texts = [f"{word} costs {number}.5 dollars" for word in ("bread", "milk") for number in range(30)]
    labels = cluster(texts, clusters=2)
    assert len(set(labels[:30])) == len(set(labels[30:])) == 1 and labels[0] != labels[-1]
    points = vectors(texts, dimensions=8)
    assert np.allclose(points[0], points[29]) and not np.allclose(points[0], points[30])


@pytest.mark.slow
def test_the_same_texts_and_seed_give_the_same_labels_whatever_the_hashes() -> None:
    script = (
        f"import hashlib, runpy; texts = runpy.run_path({__file__!r})['asked'](200)[0];"
        "from tutelage.curate.clusters import cluster, vectors;"
        "print(hashlib.sha256(repr(cluster(texts, clusters=7, seed=3)).encode()).hexdigest(),"
        "hashlib.sha256(vectors(texts, dimensions=5).tobytes()).hexdigest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1 and len(outputs.pop().split()) == 2


def test_the_number_of_clusters() -> None:
    texts, _ = asked(400)
    assert len(set(cluster(texts[:90]))) == 2
    assert len(set(cluster(texts))) <= 8
    assert len(set(cluster(texts, clusters=20))) > 8
    assert set(cluster(texts[:5], clusters=50)) - set(cluster(texts[:5], clusters=1))
    assert len(set(cluster(texts, clusters=1))) == 1


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        ([], []),
        ([""], [OTHER]),
        (["", "?!"], [OTHER] * 2),
        (["the of and", "a train leaves"], [OTHER, "leaves train"]),
        (["3 + 4", "3 + 5"], ["0 +"] * 2),
    ],
)
def test_small_and_empty(texts: list[str], labels: list[str]) -> None:
    assert cluster(texts) == labels


HOSTILE = st.text(max_size=40) | st.sampled_from(
    [
        "\ud800 lone",
        "\u202eesrever",
        "<script>alert(1)</script>",
        "日本語の質問",
        "\x1b[31m",
        "a" * 9999,
        "|x|",
        "",
    ]
)


@given(st.lists(HOSTILE, max_size=12), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_any_text_gets_a_label_that_can_be_shown(texts: list[str], clusters: int) -> None:
    labels = cluster(texts, clusters=clusters)
    assert len(labels) == len(texts) and len(set(labels) - {OTHER}) <= clusters
    for label in labels:
        label.encode()
        assert label and "\x1b" not in label and "\u202e" not in label and len(label) < 300
    points = vectors(texts, dimensions=4)
    lengths = np.linalg.norm(points, axis=1)
    assert points.shape == (len(texts), 4) and np.all((lengths < 1e-6) | (abs(lengths - 1) < 1e-4))


def test_names_are_unique() -> None:
    texts, _ = asked(300)
    for clusters in (3, 30, 60):
        labels = cluster(texts, clusters=clusters, seed=1)
        assert len(set(labels)) > clusters // 3
    # Texts that differ in the frequency of two words only cannot be told apart by three words.
    same = [" ".join(["left"] * (n % 40) + ["right"] * (40 - n % 40)) for n in range(200)]
    names = set(cluster(same, clusters=6))
    assert 4 <= len(names) <= 6 and all(set(name.split()) <= {"left", "right", *"23456"} for name in names)


@pytest.mark.parametrize("dimensions", [1, 8, 40, 500])
def test_vectors_are_near_where_words_are_shared(dimensions: int) -> None:
    texts, topics = asked(60)
    points = vectors([*texts, ""], dimensions=dimensions)
    assert points.dtype == np.float32 and points.shape == (61, dimensions)
    assert not points[-1].any() and np.allclose(np.linalg.norm(points[:-1], axis=1), 1, atol=1e-5)
    if dimensions > 1:
        alike = np.equal.outer(topics, topics)
        shared = points[:-1] @ points[:-1].T
        assert shared[alike].mean() > shared[~alike].mean() + 0.3


def test_no_distance_is_lost_where_all_directions_fit() -> None:
    texts, _ = asked(20)
    wide, few = vectors(texts, dimensions=400), vectors(texts, dimensions=21)
    assert np.allclose(wide @ wide.T, few @ few.T, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cluster(["a"], clusters=0), "clusters is 0"),
        (lambda: vectors(["a"], dimensions=0), "dimensions is 0"),
        (lambda: cluster(["a"], seed=-1), "seed is -1"),
    ],
)
def test_what_cannot_be_meant_is_refused(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=message):
        call()


def test_without_scikit_learn_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UsageError, match=r"pip install 'tutelage\[domains\]'"):
        cluster(["a question"])


@pytest.mark.slow
def test_a_pool_of_59_000_questions_takes_seconds() -> None:
    rng = random.Random(0)
    common = [f"w{n}" for n in range(3000)]
    texts = [" ".join(rng.choices(common, k=58)) + f" name{n % 30_000} {n}" for n in range(59_000)]
    start = time.process_time()
    assert len(cluster(texts)) == len(texts)
    assert time.process_time() - start < 60  # about 6 s; the bound is for slow and busy machines
