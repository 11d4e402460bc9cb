"""Texts as points: by words, and by an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import BertConfig, BertModel, T5Config, T5Model

from tinymodel import byte_tokenizer, tiny_llama
from tutelage.curate.embeddings import DIMENSIONS, embed_by, model_embed, words_embed
from tutelage.errors import UsageError

ITEMS = [
    "A robe takes 2 bolts of blue fibre and half that much white fibre. How many bolts does it take?",
    "Janet's ducks lay 16 eggs per day. She eats three and sells the others. What does she earn?",
    "Wendi feeds each of her chickens three cups of mixed feed. How many cups are left for the evening?",
]
HOSTILE = ["", " \n", "\ud800\udfff", "\x00\x1b[2J", "<b>&amp;</b>", "2 + 2", "ж" * 50, "x" * 10_000_000]


def test_a_rewording_is_nearest_to_its_item_whatever_its_numbers() -> None:
    embed = words_embed(ITEMS)
    near = embed(
        [
            "Half as much white fibre as blue goes into a robe: it takes 77 bolts of blue. How many bolts?",
            "Janet earns money with the eggs that her 5 ducks lay per day; three she eats. How much is it?",
            "Of mixed feed, Wendi gives three cups to each of her chickens. Cups left for the evening?",
        ]
    )
    alike = near @ embed(ITEMS).T
    assert alike.argmax(axis=1).tolist() == [0, 1, 2] and (alike.max(axis=1) > 0.5).all()
    other = ITEMS[1].replace("16", "2,400").replace("three", "3")
    assert embed([other])[0] @ embed([other.replace("3", "9")])[0] == pytest.approx(1)


def test_words_that_no_item_has_take_a_text_away() -> None:
    embed = words_embed(ITEMS)
    item = embed(ITEMS[:1])[0]
    longer = embed(
        [ITEMS[0] + " Unrelated quarrels about zeppelins, parliaments, volcanoes." * n for n in range(3)]
    )
    whole, some, more = (longer @ item).tolist()
    assert whole == pytest.approx(1) and 0.8 > some > more
    assert embed(["多少 bolts 颜色和温度变化的关系取决于材料"])[0] @ item < 0.3


def test_folding_changes_similarities_little() -> None:
    rng = np.random.default_rng(0)
    vocabulary = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in ("rst", "lk", "mp", "nd")]
    texts = [" ".join(rng.choice(vocabulary, 30)) for _ in range(60)]
    parts = [
        TfidfVectorizer(sublinear_tf=True).fit(texts).transform(texts),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
        .fit(texts)
        .transform(texts),
    ]
    exact = sum((part @ part.T).toarray() for part in parts) / 2
    found = words_embed(texts)(texts)
    assert found.shape == (60, DIMENSIONS) and found.dtype == np.float32
    wrong = (found @ found.T - exact)[np.triu_indices(60, 1)]
    # Noise, and to neither side: without signs every collision would make two texts more alike.
    assert wrong.std() < 0.03 and abs(wrong.mean()) < 0.02


def test_rows_are_of_length_one_or_of_zeros_whatever_the_text() -> None:
    found = words_embed(ITEMS)(HOSTILE)
    lengths = np.linalg.norm(found, axis=1)
    # Signs and control characters are words of a kind; blank texts have nothing to compare.
    np.testing.assert_allclose(lengths, [0, 0, *[1] * 6], rtol=1e-5)
    assert words_embed([])(["a b"]).shape == (1, DIMENSIONS) and words_embed(ITEMS)([]).shape == (
        0,
        DIMENSIONS,
    )


def saved(folder: Path, model: Any, tokenizer: Any = None) -> Path:
    model.save_pretrained(folder)
    (tokenizer or byte_tokenizer(chat=False)).save_pretrained(folder)
    return folder


def tiny_bert(room: int = 48, seed: int = 0) -> BertModel:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=room,
        initializer_range=0.5,
    )
    return BertModel(config).eval()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("encoder"), tiny_bert())


def test_a_text_is_the_mean_of_its_last_hidden_states(encoder: Path) -> None:
    texts = ["a short one", "one that is a good deal longer", "x"]
    found = model_embed(str(encoder), device="cpu")(texts)
    model, tokenizer = tiny_bert(), byte_tokenizer(chat=False)
    for text, row in zip(texts, found, strict=True):
        with torch.no_grad():  # alone, so without padding
            states = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0]
        mean = states.mean(0).numpy()
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-5)


def test_rows_depend_neither_on_the_batch_nor_on_what_is_beside(encoder: Path) -> None:
    texts = [f"{'word ' * (n % 7)}{n}" for n in range(20)]
    several = embed_by(str(encoder), [])(texts)
    single = model_embed(str(encoder), batch=1)(texts)
    np.testing.assert_allclose(several, single, atol=1e-5)
    np.testing.assert_allclose(model_embed(str(encoder), batch=3)(texts[::-1])[::-1], single, atol=1e-5)


def test_a_model_reads_the_beginning_of_any_text(encoder: Path) -> None:
    embed = model_embed(str(encoder))
    long = "abcdefghij" * 5  # 50 tokens, where the model has room for 48
    cut, beginning, other = embed([long + "x" * 10_000_000, long[:48], long[:47]])
    np.testing.assert_allclose(cut, beginning, atol=1e-6)
    assert cut @ other < 0.99999
    found = embed(HOSTILE)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [0, 0, *[1] * 6], rtol=1e-5)
    assert embed([]).shape == (0, 16)


def refused(source: str | Path) -> str:
    with pytest.raises(UsageError) as caught:
        model_embed(str(source), device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_encoder_is_one_line(tmp_path: Path, encoder: Path) -> None:
    assert "no such model folder (for a model on the Hub write hub:nowhere)" in refused("nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "config.json").write_text("[1]")
    pickled = saved(tmp_path / "pickled", tiny_bert())
    weights = load_file(pickled / "model.safetensors")
    torch.save(weights, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    cut = saved(tmp_path / "cut", tiny_bert())
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    config = T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    both = saved(tmp_path / "both", T5Model(config))
    padless = byte_tokenizer(chat=False)
    padless.pad_token = None
    for folder in (tmp_path / "empty", tmp_path / "list", pickled, cut, both):
        assert f"{folder}: cannot use this model as an encoder: " in refused(folder)
    assert "an encoder with a decoder" in refused(both)
    assert "no padding token" in refused(saved(tmp_path / "padless", tiny_llama(300), padless))
    with pytest.raises(UsageError, match="batch is 0"):
        model_embed(str(encoder), batch=0)


def test_weights_that_are_missing_are_not_drawn_at_random(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "m", tiny_bert())
    capfd.readouterr()
    weights = load_file(folder / "model.safetensors")
    whole = model_embed(str(folder))(["some text"])
    # The mean does without the pooler.
    kept = {key: value for key, value in weights.items() if not key.startswith("pooler.")}
    assert len(kept) < len(weights)
    save_file({**kept, "extra": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
    np.testing.assert_array_equal(model_embed(str(folder))(["some text"]), whole)
    name = "encoder.layer.1.output.dense.weight"
    save_file(
        {key: value for key, value in kept.items() if key != name},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    assert refused(folder).endswith(f"its weights lack {name!r}")
    save_file({**kept, name: torch.zeros(3, 3)}, folder / "model.safetensors", {"format": "pt"})
    assert "cannot use this model as an encoder" in refused(folder)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_numbers_that_are_not_finite_are_told(tmp_path: Path) -> None:
    model = tiny_bert()
    with torch.no_grad():
        model.embeddings.LayerNorm.weight.fill_(float("nan"))
    embed = model_embed(str(saved(tmp_path / "nan", model)))
    with pytest.raises(UsageError, match="not finite"):
        embed(["a", ""])
