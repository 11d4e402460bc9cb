"""Texts as points, of which the near ones say the same: what `meaning` looks for candidates with.

    words    TF-IDF over words and runs of 3 to 5 characters: needs no model, and finds a rewording that keeps
             a good part of the words, whatever its numbers
    a model  a Hugging Face encoder of sentences: also finds other words and, where it was trained for them,
             other languages

How alike is alike hangs on the embedding. Of paraphrases of GSM8K's test questions (synonyms, other names,
sentences swapped), and of its training questions, which are other problems of the same kind, so many are as
near to a test question as `least`:

    least                           0.6            0.7            0.8            0.85
    words                     96 %, 0.8 %    87 %, 0.2 %    65 %, 0.1 %    45 %, 0.0 %
    all-MiniLM-L6-v2        100 %, 81.1 %   99 %, 30.5 %    95 %, 1.4 %    89 %, 0.2 %

Promises: a row of length 1 for each text, so that an inner product is a similarity (cosine), and a row of
zeros for a text without anything to compare; the same texts give the same rows on the same machine; no text
makes it fail; weights come from safetensors only, and no code of a model repository is ever run; a model that
cannot be used is one UsageError line.
Does not: read more of a text than its first `CHARACTERS` (a model: than its own limit of tokens, at most
`TOKENS`), or put words before a text, as some models are trained to expect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import UsageError
from tutelage.questions import words
from tutelage.records import clean_text

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Points of some texts, (texts, dimensions), in their order."""
WORDS = "words"
CHARACTERS = 20_000
TOKENS = 512
DIMENSIONS = 2048
"""Of `words_embed`, half for words and half for runs of characters. On GSM8K (its training questions against
its test questions) similarities are within 0.01 of those without folding, at every percentile."""
_TERMS = 2**20
_NUMBER = "0"
_NOTHING = 1e-9
# What transformers, tokenizers and safetensors raise for a model that is not there, not whole, or of another
# kind. SafetensorError, which belongs here, can be named only where that library is imported.
_REFUSALS = (
    OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, ImportError, RuntimeError
)  # fmt: skip


def embed_by(name: str, items: Sequence[str]) -> Embed:
    """`words_embed` of the benchmark's `items` for the name `words`, else `model_embed`."""
    return words_embed(items) if name == WORDS else model_embed(name)


def words_embed(items: Sequence[str]) -> Embed:
    """TF-IDF (Salton and Buckley 1988) over words and, within them, runs of 3 to 5 characters, the weights
    from the benchmark's `items`: both sides are measured by what is rare in the benchmark.

    Every number counts as the same word. Terms that no item has weigh most: they take a text away from all
    items. Terms are folded into `DIMENSIONS` by a signed hash (Weinberger et al., arXiv 0902.2206), which
    keeps inner products but for noise with a standard deviation of some 0.02. Raises UsageError where
    scikit-learn is not installed."""
    try:
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    except ImportError as error:
        raise UsageError(
            "meaning: embed: words needs scikit-learn: pip install 'tutelage[domains]'; or name a model"
        ) from error
    kinds = (
        {"analyzer": _masked},
        {"analyzer": "char_wb", "ngram_range": (3, 5), "preprocessor": lambda text: " ".join(_masked(text))},
    )
    parts = []
    for kind in kinds:
        counts = HashingVectorizer(n_features=_TERMS, alternate_sign=False, norm=None, **kind)
        weigh = TfidfTransformer(sublinear_tf=True).fit(counts.transform(list(items) or [""]))
        parts.append((counts, weigh))

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        given = list(texts)
        if not given:
            return np.zeros((0, DIMENSIONS), np.float32)
        folded = [
            _folded(weigh.transform(counts.transform(given)), DIMENSIONS // 2) for counts, weigh in parts
        ]
        return _unit(np.hstack(folded))

    return embed


def _masked(text: str) -> list[str]:
    """The words of a text, with one word for all numbers."""
    return [_NUMBER if word[0].isdecimal() else word for word in words(clean_text(text[:CHARACTERS]))]


def _folded(weights: csr_matrix, dimensions: int) -> NDArray[np.float32]:
    """Hashed terms, (texts, terms), as (texts, dimensions): the low part of the hash is the place, the next
    bit the sign."""
    from scipy.sparse import coo_matrix

    found = weights.tocoo()
    signs = 1.0 - 2.0 * (found.col // dimensions % 2)
    places = found.row, found.col % dimensions
    dense = coo_matrix((found.data * signs, places), (weights.shape[0], dimensions)).toarray()
    return np.asarray(dense, np.float32)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(lengths > _NOTHING, rows / np.maximum(lengths, _NOTHING), 0).astype(np.float32)


def model_embed(source: str, batch: int = 64, *, device: str | None = None) -> Embed:
    """The encoder at `source`: a folder, or a Hub name `owner/name` or `hub:name`. `device` None: the GPU if
    there is one.

    A text is the mean of the last hidden states over its tokens (Reimers and Gurevych, Sentence-BERT, arXiv
    1908.10084, section 3, MEAN), also for a model that was trained with another pooling. Raises UsageError
    for a model that is not there, not whole, no encoder, or not in safetensors, and, while embedding, for one
    whose numbers are not finite."""
    if batch < 1:
        raise UsageError(f"meaning: batch is {batch}; it must be at least 1")
    try:
        import torch
        from safetensors import SafetensorError
    except ImportError as error:
        raise UsageError("meaning: a model needs torch: pip install 'tutelage[train]'") from error
    place = _place(source)
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model, tokenizer, missing = _loaded(place)
        most = min(
            TOKENS, tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", TOKENS)
        )
        model.to(target).eval()
        _means(model, tokenizer, ["a probe"], most, target)
    except (*_REFUSALS, SafetensorError) as error:
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UsageError(f"{source}: cannot use this model as an encoder: {line[:300]}") from error
    if missing:
        raise UsageError(f"{source}: cannot use this model as an encoder: its weights lack {missing[0]!r}")

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        found = np.zeros((len(texts), model.config.hidden_size), np.float32)
        cut = [clean_text(text[:CHARACTERS]) for text in texts]
        # Texts of a like length together: less padding, and no row depends on it.
        order = sorted((at for at, text in enumerate(cut) if text.strip()), key=lambda at: len(cut[at]))
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            found[rows] = _means(model, tokenizer, [cut[at] for at in rows], most, target)
        if not np.isfinite(found).all():
            raise UsageError(f"{source}: this model gives numbers that are not finite; name another one")
        return _unit(found)

    return embed


def _place(source: str) -> str:
    """The folder, or the name on the Hub. Raises UsageError for what can be neither."""
    if source.startswith("hub:"):
        return source.removeprefix("hub:")
    folder = Path(source).expanduser()
    if folder.is_dir():
        return str(folder)
    owner, _, rest = source.partition("/")
    if owner and rest and "/" not in rest and owner[0] not in "./~" and not Path(owner).exists():
        return source
    raise UsageError(
        f"{source}: no such model folder (for a model on the Hub write hub:{source.strip('./')})"
    )


def _loaded(place: str) -> tuple[Any, Any, list[str]]:
    """Model, tokenizer, and the weights that are missing, which transformers would draw at random. Those of
    a pooler may be: the mean does without it."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError("it is an encoder with a decoder; name one without")
    tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    if tokenizer.pad_token is None:
        raise ValueError("its tokenizer has no padding token")
    with _quietly():
        model, found = AutoModel.from_pretrained(
            place,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    missing = [key for key in sorted(found["missing_keys"]) if not key.startswith("pooler.")]
    return model, tokenizer, missing


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' bar and its table of weights that do not fit, which are told in one line."""
    from transformers.utils import logging

    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _means(model: Any, tokenizer: Any, texts: list[str], most: int, device: str) -> NDArray[np.float32]:
    """The mean hidden state of each text, (texts, dimensions); zeros for one without tokens."""
    import torch

    tokens = tokenizer(texts, padding=True, truncation=True, max_length=most, return_tensors="pt").to(device)
    mask = tokens["attention_mask"].unsqueeze(-1).float()  # (texts, tokens, 1)
    if not mask.numel():
        return np.zeros((len(texts), model.config.hidden_size), np.float32)
    with torch.inference_mode():
        states = model(**tokens).last_hidden_state  # (texts, tokens, dimensions)
    found: NDArray[np.float32] = ((states * mask).sum(1) / mask.sum(1).clamp(min=1)).float().cpu().numpy()
    return found
