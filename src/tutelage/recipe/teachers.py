"""Settings of teachers, as a recipe and `tutelage collect` take them.

Promises: importing it loads no heavy library; every setting reaches the teacher it describes (a test holds
it); the same blocks serve the stages `collect` and `verify` (a judge is a teacher).
Does not: build teachers (see `recipe.jobs.collecting`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from tutelage.recipe.decoding import Policy, Sampling
from tutelage.recipe.stage import LocalOrHub, LocalOrName, Settings

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Price(Settings):
    """US dollars per million tokens, as text so that decimals stay exact; null: unknown."""

    prompt: str | None = None
    cached: str | None = None
    completion: str | None = None


class LabTeacher(Settings):
    """A scripted teacher of the lab world (see `lab.oracles.Oracle`)."""

    kind: Literal["lab"]
    style: Literal["direct", "human", "detailed", "careless", "drafting"]
    seed: int = 0
    slip: Share = 0.0
    stop: Share = 0.55
    skip: Annotated[int, Field(ge=0, le=9)] = 0
    repeats: Positive = 2
    price: Price = Price()


class EndpointTeacher(Settings):
    """A server of OpenAI's or Anthropic's kind (see `teachers.endpoint.EndpointTeacher`). `prices` is where
    the price is looked up when `price` does not give it: a file (see `teachers.prices`), or `genai`, the list
    of the package genai-prices."""

    kind: Literal["endpoint"]
    base_url: str
    model: str
    key_env: str = ""
    api: Literal["chat", "completions", "messages"] = "chat"
    stream: bool = False
    reasoning: bool = False
    reasoning_within: Positive = 10
    system: str = ""
    prompt: str = "{question}"
    sampling: Mapping[str, Any] = {}
    extra: Mapping[str, Any] = {}
    max_tokens: int | None = None
    max_tokens_field: str = "max_tokens"
    seed: int | None = None
    price: Price = Price()
    prices: LocalOrName | None = None
    budget: str | None = None
    concurrency: Positive = 64
    requests_per_s: Annotated[float, Field(gt=0)] | None = None
    tokens_per_min: Positive | None = None
    timeout_s: float = 600.0
    deadline_s: float = 3600.0
    retries: int = 5
    name: str = ""


class LocalTeacher(Settings):
    """A model of one's own that answers (see `teachers.local.LocalTeacher`). `model` is what the stage
    `student` takes as its source: `lab-base`, a folder, a GGUF file, or a Hub name."""

    kind: Literal["local"]
    model: LocalOrName
    policy: Policy = Policy()
    sampling: Sampling = Sampling()
    max_answer: Positive = 1024
    max_batch: Positive = 64
    seed: int = 0
    bf16: bool = False
    price: Price = Price()
    name: str = ""


class HumanTeacher(Settings):
    """The solutions that came with the problems."""

    kind: Literal["human"]
    answer: str = "The answer is {gold}."


class ReplayTeacher(Settings):
    """A file of recorded traces, or a data set of them on the Hub, `hub:owner/name` (see
    `teachers.replay.ReplayTeacher`)."""

    kind: Literal["replay"]
    path: LocalOrHub
    name: str = "recorded"
    layout: Literal[
        "auto",
        "traces",
        "generations",
        "s1k",
        "deepseek",
        "gemini",
        "openthoughts",
        "messages",
        "conversations",
        "plain",
    ] = "auto"
    columns: Mapping[str, str] = {}


Teacher = Annotated[
    LabTeacher | EndpointTeacher | LocalTeacher | HumanTeacher | ReplayTeacher, Field(discriminator="kind")
]
