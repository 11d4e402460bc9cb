"""prices: a list of one's own or the package's, exact, offline, and unknown where it does not know."""

from __future__ import annotations

import json
import socket
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.teachers.money import UNKNOWN, Price, price
from tutelage.teachers.prices import find_price, read_prices

HOST = "https://api.example.com/v1"


def table(path: Path, text: str, name: str = "prices.yaml") -> Path:
    file = path / name
    file.write_text(text)
    return file


def test_numbers_keep_the_decimals_they_were_written_with(tmp_path: Path) -> None:
    text = (
        "m: {prompt: 0.14, cached: '0.014', completion: 0.1000000000000000055}\nn: {prompt: 1, completion: 2}"
    )
    found = read_prices(table(tmp_path, text))
    assert found == {"m": price("0.14", "0.1000000000000000055", "0.014"), "n": price(1, 2)}
    text = (
        '{"m": {"prompt": 0.14, "cached": "0.014", "completion": 0.1000000000000000055},\t"n": {"prompt": 1}}'
    )
    found = read_prices(table(tmp_path, text, "p.json"))
    assert found == {"m": price("0.14", "0.1000000000000000055", "0.014"), "n": price(1, None)}


@given(amount=st.decimals(0, 999, places=6))
def test_any_amount_is_read_as_it_is_written(
    tmp_path_factory: pytest.TempPathFactory, amount: Decimal
) -> None:
    folder = tmp_path_factory.getbasetemp()
    for name, text in (
        ("p.yaml", f"m: {{prompt: {amount:f}}}"),
        ("p.json", f'{{"m": {{"prompt": {amount:f}}}}}'),
    ):
        assert read_prices(table(folder, text, name))["m"].prompt == amount


def test_a_model_that_is_not_listed_is_unknown(tmp_path: Path) -> None:
    file = table(tmp_path, "m: {prompt: 1, completion: 2}")
    assert find_price(str(file), "m", HOST) == price(1, 2)
    assert find_price(str(file), "other", HOST) == UNKNOWN
    assert read_prices(table(tmp_path, "m: {prompt: null, completion: 2}"))["m"] == price(None, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m: {prompt: cheap}", "p.yaml: m.prompt: 'cheap' is not an amount of US dollars"),
        ("m: {prompt: -1}", "p.yaml: m.prompt: '-1' is not an amount"),
        ("m: {prompt: [1]}", "p.yaml: m.prompt: not an amount"),
        ("m: {input: 1}", "p.yaml: m.input: not one of prompt, cached, completion"),
        ("m: {prompt: 1}\nm: {prompt: 2}", "p.yaml: m: given twice"),
        ("m: {prompt: 1, prompt: 2}", "p.yaml: m.prompt: given twice"),
        ("m: {cached: 1}", "p.yaml: m.cached: give the price of other"),
        ("m: 3", "p.yaml: m: not a mapping like"),
        ("m: [{prompt: 1}]", "p.yaml: m: not a mapping like"),
        ("- m", "p.yaml: not a mapping like"),
        ("? [a]\n: {prompt: 1}", "p.yaml: not a mapping like"),
        ("", "p.yaml: not a mapping like"),
        ("m: {prompt: 1", "p.yaml: cannot be read (while parsing"),
        ("a: " + "[" * 2000, "p.yaml: cannot be read"),
    ],
)
def test_a_mistake_names_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_prices(table(tmp_path, text, "p.yaml"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ['{"m": {"prompt": NaN}}', '{"m": {"prompt": true}}', '{"m": 1, "m": 2}', "{", "[1]"]
)
def test_a_mistake_in_json_too(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"p\.json"):
        read_prices(table(tmp_path, text, "p.json"))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml: No such file.*give a YAML or JSON file, or genai"):
        find_price(str(tmp_path / "none.yaml"), "m", HOST)
    (tmp_path / "p.yaml").write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"p\.yaml: not UTF-8"):
        find_price(str(tmp_path / "p.yaml"), "m", HOST)


# --- the package ---


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("genai_prices")

    def refuse(*args: Any, **named: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("offline")
def test_the_packages_list_is_read_without_a_network() -> None:
    found = find_price("genai", "gpt-4o", "https://api.openai.com/v1")
    assert found.prompt is not None and found.completion is not None and found.cached is not None
    assert found.completion > found.prompt > found.cached > 0
    assert all(isinstance(each, Decimal) for each in (found.prompt, found.completion, found.cached))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("model", "host"),
    [
        ("no-such-model", "https://api.openai.com/v1"),
        ("gpt-4o", "http://127.0.0.1:8000/v1"),  # a namesake on a machine of one's own
        ("perplexity/sonar-deep-research", "https://openrouter.ai/api/v1"),  # thinking has a price of its own
        ("sonar-pro", "https://api.perplexity.ai"),  # also charges by the request
    ],
)
def test_what_the_list_cannot_say_is_unknown(model: str, host: str) -> None:
    assert find_price("genai", model, host) == UNKNOWN


@pytest.mark.usefixtures("offline")
def test_the_dearest_hour_and_the_long_prompts_are_known() -> None:
    """DeepSeek costs less at night; Anthropic more for prompts of more than 200,000 tokens."""
    from genai_prices import Usage, calc_price

    deepseek = find_price("genai", "deepseek-reasoner", "https://api.deepseek.com/v1")
    now = calc_price(Usage(input_tokens=10**6), "deepseek-reasoner", provider_id="deepseek").total_price
    assert deepseek.prompt is not None and deepseek.prompt >= now
    claude = find_price("genai", "claude-sonnet-4-5", "https://api.anthropic.com/v1")
    assert isinstance(claude.long, Price) and claude.long_from == 200_000
    assert claude.prompt is not None and claude.long.prompt is not None and claude.long.prompt > claude.prompt


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    with pytest.raises(UsageError, match=r"pip install 'tutelage\[prices\]'"):
        find_price("genai", "gpt-4o", HOST)


def test_a_list_is_json_or_yaml_alike(tmp_path: Path) -> None:
    plain = {"m": {"prompt": "1", "completion": "2"}}
    assert read_prices(table(tmp_path, json.dumps(plain), "p.json")) == read_prices(
        table(tmp_path, json.dumps(plain), "p.yaml")
    )
