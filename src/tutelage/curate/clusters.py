"""Subjects without a language model: questions that use the same words, grouped and named by them.

TF-IDF over the words of the questions, projected on the main directions in which they differ (latent semantic
analysis), then k-means in small batches (scikit-learn).
Promises: one label for each text, in their order; the same texts, number of clusters and seed give the same
labels on the same machine (one thread computes); a label is unique and made of the words that set its cluster
apart ("miles speed train"); every number counts as the same word, so that questions with other numbers fall
together; a text without words has the label `OTHER`; 59,000 questions take seconds.
Does not: understand. It tells topics apart, not what kind of reasoning a question needs, and scripts written
without spaces hardly at all: there a language model labels better (`domains`).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import UsageError
from tutelage.plain import visible
from tutelage.questions import words

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

OTHER = "other"
"""The label of texts that have no word in common with any other, or none at all."""
MOST_CLUSTERS = 50
"""As many as s1 found subjects among 59,000 questions (51), and few enough to read."""
CHARACTERS = 20_000
"""What is read of a text, from its beginning: a question that is longer is known by then."""
_TERMS = 20_000
_DIRECTIONS = 64
_LONGEST_WORD = 30
_FEW = 1000
"""Up to so many texts, a word that only one of them uses counts; with more it would only cost time."""
_NUMBER = "0"
_NOTHING = 1e-9


def cluster(texts: Sequence[str], *, clusters: int | None = None, seed: int = 0) -> list[str]:
    """The name of its cluster for each text; by default a cluster for 50 texts, from 2 to `MOST_CLUSTERS`.

    There can be fewer clusters than asked for: no more than texts, and none that is empty. Raises UsageError
    for `clusters` below 1, a negative seed, and where scikit-learn is not installed."""
    if clusters is not None and clusters < 1:
        raise UsageError(f"clusters is {clusters}; it must be at least 1")
    _require(seed)
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    weights, terms = _weights(texts)  # (texts, terms)
    worded = np.flatnonzero(np.diff(weights.indptr))
    if not len(worded):
        return [OTHER] * len(texts)
    wanted = min(MOST_CLUSTERS, max(2, len(texts) // 50)) if clusters is None else clusters
    wanted = min(wanted, len(worded))
    points = _project(weights, _DIRECTIONS, seed)[worded]  # (worded texts, directions)
    # Sums over several threads differ in their last digits from run to run, and so could the clusters.
    with threadpool_limits(1):
        found = MiniBatchKMeans(wanted, random_state=seed, n_init=3, batch_size=4096).fit_predict(points)
    names = _names(weights[worded], found, terms)
    labels = [OTHER] * len(texts)
    for place, number in zip(worded.tolist(), found.tolist(), strict=True):
        labels[place] = names[number]
    return labels


def vectors(texts: Sequence[str], *, dimensions: int = 128, seed: int = 0) -> NDArray[np.float32]:
    """Texts as points, (texts, dimensions): rows of length 1 whose inner product is how much two texts share
    in words; a row of zeros for a text without words.

    Truncated singular value decomposition of TF-IDF (Deerwester et al. 1990, latent semantic analysis).
    Raises UsageError for `dimensions` below 1, a negative seed, and where scikit-learn is not installed."""
    if dimensions < 1:
        raise UsageError(f"dimensions is {dimensions}; it must be at least 1")
    _require(seed)
    return _project(_weights(texts)[0], dimensions, seed)


def _require(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise UsageError(f"seed is {seed}; it must be from 0 up to 2**32 - 1")
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "clusters of questions need scikit-learn: pip install 'tutelage[domains]'"
        ) from error


def _weights(texts: Sequence[str]) -> tuple[csr_matrix, list[str]]:
    """TF-IDF weights, (texts, terms), rows of length 1 (or 0), and the terms, sorted.

    A word's weight grows with the logarithm of its count in the text and falls with that of the number of
    texts that use it. English function words are left out: as names they say nothing, as evidence little."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfTransformer

    numbers: dict[str, int] = {}  # each word in the order of its first use
    used, ends = array("q"), array("q", [0])
    for text in texts:
        for word in words(text[:CHARACTERS]):
            term = _NUMBER if word[0].isdigit() else word[:_LONGEST_WORD]
            if term not in ENGLISH_STOP_WORDS:
                used.append(numbers.setdefault(term, len(numbers)))
        ends.append(len(used))
    shape = len(texts), len(numbers)
    if not used:
        return csr_matrix((len(texts), 0)), []
    counts = csr_matrix((np.ones(len(used)), np.asarray(used), np.asarray(ends)), shape)
    counts.sum_duplicates()
    texts_with = np.bincount(counts.indices, minlength=len(numbers))  # (terms,)
    kept = _kept_terms(list(numbers), texts_with, least=1 if len(texts) <= _FEW else 2)
    counts = counts[:, [numbers[term] for term in kept]]
    counts.sort_indices()
    return TfidfTransformer(sublinear_tf=True).fit_transform(counts), kept


def _kept_terms(terms: list[str], texts_with: NDArray[np.int64], least: int) -> list[str]:
    """The most common terms that `least` texts use, sorted, so that nothing hangs on the order of texts."""
    often = [(-count, term) for term, count in zip(terms, texts_with.tolist(), strict=True) if count >= least]
    return sorted(term for _, term in sorted(often)[:_TERMS])


def _project(weights: csr_matrix, dimensions: int, seed: int) -> NDArray[np.float32]:
    """The main directions of `weights`, (texts, dimensions), rows of length 1 or 0."""
    from sklearn.utils.extmath import randomized_svd
    from threadpoolctl import threadpool_limits

    texts, terms = weights.shape
    points = np.zeros((texts, dimensions))
    if min(texts, terms) <= dimensions:  # nothing to gain: every direction fits in
        if terms <= dimensions:
            points[:, :terms] = weights.toarray()
        else:
            # Rows by their inner products with all rows: fewer numbers than terms, and no distance is lost.
            values, directions = np.linalg.eigh((weights @ weights.T).toarray())
            points[:, :texts] = directions * np.sqrt(np.clip(values, 0, None))
    else:
        with threadpool_limits(1):
            left, sizes, _ = randomized_svd(weights, dimensions, n_iter=3, random_state=seed)
        points[:, : len(sizes)] = left * sizes
    points[np.diff(weights.indptr) == 0] = 0
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    unit = np.divide(points, lengths, out=np.zeros_like(points), where=lengths > _NOTHING)
    return np.asarray(unit, np.float32)


def _names(weights: csr_matrix, found: NDArray[Any], terms: list[str]) -> dict[int, str]:
    """For each cluster the three words whose mean weight in it exceeds that in all texts most; clusters that
    would share a name are told apart by further words, at last by a number."""
    overall = np.asarray(weights.mean(axis=0)).ravel()  # (terms,)
    readable = np.array([term.isalpha() and len(term) > 1 for term in terms])
    names: dict[int, str] = {}
    sizes = np.bincount(found)
    for number in np.argsort(-sizes, kind="stable").tolist():
        if not sizes[number]:
            continue
        inside = np.asarray(weights[found == number].mean(axis=0)).ravel()
        excess = inside - overall
        if not (excess > _NOTHING).any():  # no other cluster to tell it apart from: what is common in it
            excess = inside
        order = [at for at in np.argsort(-excess, kind="stable")[:200] if excess[at] > _NOTHING]
        telling = [terms[at] for at in order if readable[at]] or [visible(terms[at]) for at in order]
        names[number] = _unique(telling, {OTHER, *names.values()})
    return names


def _unique(telling: Sequence[str], taken: set[str]) -> str:
    """The first three words, or as many more as make a name that is not taken; at last with a number."""
    for many in range(3, 7):
        if (name := " ".join(telling[:many])) not in taken:
            return name
    number = 2
    while (name := f"{' '.join(telling[:3])} {number}") in taken:
        number += 1
    return name
