"""The model card of a trained model: README.md with Hugging Face's front matter, written from its record.

Promises: every statement comes from the model's own record and template; names, settings and messages of
users, models and data sets stay text in Markdown and in YAML; the same training gives the same card.
Does not: report an accuracy (a run's report does, with its interval), or know the licence of a base model
that nobody told.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tutelage.errors import StorageError
from tutelage.plain import cell, fenced, table, visible
from tutelage.questions import question_hashes
from tutelage.records import Problem
from tutelage.students.lineage import Lineage, add_stage, begin
from tutelage.students.pretrained import saved_template
from tutelage.students.template import Template

CARD_FILE = "README.md"
# What a stage is, for people who have not read the documentation.
_STAGES = {
    "mid-train": "continued training on many packed traces",
    "pretrain": "continued training on plain documents",
    "retrofit": "surgery: some of its layers, of which the middle ones are passed again and again",
    "sft": "supervised fine-tuning",
    "distill": "distillation of a teacher's token distribution",
    "dpo": "direct preference optimisation",
    "grpo": "reinforcement learning with verifiable rewards (GRPO)",
    "ppo": "reinforcement learning with verifiable rewards (PPO)",
}
_LOADING = "\n\n".join(
    (
        "Here `FOLDER` is the folder with this file. The prompt has to be written as described above; these "
        "do it:",
        fenced(
            "tutelage serve FOLDER\ntutelage evaluate --model FOLDER --problems questions.jsonl --out result",
            "bash",
        ),
        "The weights alone, for code of your own:",
        fenced(
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
            "python",
        ),
    )
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def write_start(folder: Path, source: str, licence: str = "") -> None:
    """Record and card of the model in `folder` as it is before any training (see `lineage.begin`).

    Raises StorageError when the disk refuses."""
    _write_card(folder, begin(folder, source, licence))


def write_training(
    folder: Path,
    stage: Mapping[str, Any],
    *,
    before: Path,
    trained_on: Iterable[Problem] = (),
    selected_on: Iterable[Problem] = (),
) -> None:
    """Record and card of the trained model in `folder`: those of the model in `before`, and this stage.

    `stage` is a JSON object; the card uses `stage` (its name), `kind`, `seed`, `steps`, `stopped`, `numbers`
    (counts: `examples`, `tokens_seen`, `tokens_learned`) and `settings` (`system` and the like); it may hold
    more, such as `data` (a hash) and `versions`. Where the problems come from, how many there are and their
    licences are added here. `selected_on` are the problems that a checkpoint or a stop was chosen on.
    Raises UsageError for a broken record in `before` and StorageError when the disk refuses."""
    learned = list(trained_on)
    parts = Counter((problem.source, problem.licence) for problem in learned)
    told = [{"source": name, "licence": licence, "count": n} for (name, licence), n in sorted(parts.items())]
    hashes, chosen = question_hashes(learned), question_hashes(selected_on)
    _write_card(folder, add_stage(folder, {**stage, "problems": told}, before, hashes, chosen))


def _write_card(folder: Path, lineage: Lineage) -> None:
    text = card(lineage, saved_template(folder) or Template())
    try:
        (folder / CARD_FILE).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{folder}: cannot write the model card ({error.strerror or error})") from error


def card(lineage: Lineage, template: Template) -> str:
    """The text of the card."""
    stages = " → ".join(str(stage.get("stage", "?")) for stage in lineage.stages)
    head = ("stage", "what", "steps", "seed", "examples", "tokens seen", "tokens learned", "stopped")
    parts = [
        f"---\n{_front_matter(lineage)}---",
        f"# A student: {_line(stages or 'as it came')}",
        _what(lineage),
        "## How it was trained",
        *_training(head, lineage),
        "## Data",
        *_data(lineage),
        "## How it is spoken to",
        *_spoken(template, lineage),
        "## Limits",
        *_limits(lineage),
        "## How to load it",
        _LOADING,
    ]
    return "\n\n".join(parts) + "\n"


def _training(head: tuple[str, ...], lineage: Lineage) -> Iterator[str]:
    if not lineage.stages:
        yield "It was not trained here."
        return
    yield table(head, [_row(stage) for stage in lineage.stages])
    yield (
        "All settings of each stage, the hash of its data and the package versions are in "
        "`tutelage_training.json`."
    )


def _front_matter(lineage: Lineage) -> str:
    source = str(lineage.start.get("source", "")).removeprefix("hub:")
    fields: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    licence = str(lineage.start.get("licence", ""))
    # Hugging Face wants one of its own names here; what nobody told is not guessed.
    fields["license"] = licence.lower() if re.fullmatch(r"[A-Za-z0-9.-]+", licence) else "other"
    if fields["license"] == "other":
        fields["license_name"] = "see-base-model-and-data"
    if _HUB_NAME.fullmatch(source):
        fields["base_model"] = source
    kinds = dict.fromkeys(str(stage.get("kind", "")) for stage in lineage.stages)
    fields["tags"] = ["tutelage", "reasoning", *(visible(kind) for kind in kinds if kind)]
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=False)


def _what(lineage: Lineage) -> str:
    count = len(lineage.stages)
    stages = f"{count} stage{'s' if count != 1 else ''} of training" if count else "no training"
    source = _line(lineage.start.get("source") or "a model without a name")
    return (
        "A causal language model that writes its thinking before its answer: "
        f"{stages} with tutelage, started from {source}."
    )


def _row(stage: Mapping[str, Any]) -> tuple[str, ...]:
    counts = stage.get("numbers") or {}
    kind = str(stage.get("kind", ""))
    return (
        visible(stage.get("stage", kind)),
        f"{visible(kind)}: {_STAGES[kind]}" if kind in _STAGES else visible(kind),
        _count(stage.get("steps")),
        visible(stage.get("seed", "")),
        *(_count(counts.get(name)) for name in ("examples", "tokens_seen", "tokens_learned")),
        visible(stage.get("stopped") or ""),
    )


def _data(lineage: Lineage) -> Iterator[str]:
    rows = [
        (visible(stage.get("stage", "")), *_part(part))
        for stage in lineage.stages
        for part in stage.get("problems") or ()
    ]
    if rows:
        yield table(("stage", "problems from", "licence", "problems"), rows)
    else:
        yield "No problems are on record."
    if lineage.learned:
        yield (
            f"It learned from {len(lineage.learned):,} different questions; their numbers are in "
            "`tutelage_questions.parquet`, and an evaluation on any of them says so."
        )


def _part(part: Mapping[str, Any]) -> tuple[str, str, str]:
    return (
        visible(part.get("source") or "not told"),
        visible(part.get("licence") or "not told"),
        _count(part.get("count")),
    )


def _spoken(template: Template, lineage: Lineage) -> Iterator[str]:
    if template.system is None:
        yield "System message: none of its own; what the tokenizer's chat template says by itself stands."
    else:
        yield "System message, the same for every question:"
        yield fenced(visible(template.system), "text")
    if template.thinking:
        opened = "the prompt ends with" if template.prefill else "the reply starts with"
        yield f"Thinking stands between two markers, the answer follows the second; {opened} the first one:"
        yield fenced(f"{visible(template.think_open)}\n{visible(template.think_close)}", "text")
    else:
        yield "It has no markers of thinking: the whole reply is the answer."
    asked = [found for stage in lineage.stages if (found := _asked(stage.get("settings") or {}))]
    if asked:
        yield "How it was asked in the last stage that let it write:"
        yield fenced(visible(json.dumps(asked[-1], indent=1, sort_keys=True, ensure_ascii=False)), "json")
    else:
        yield "No stage let it write while it trained; greedy decoding (temperature 0) is the default here."


def _asked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """How a stage sampled from the model: a stage of reinforcement learning, else its validation."""
    inner = settings.get("validate_on")
    for place in (settings, inner if isinstance(inner, Mapping) else {}):
        if found := {name: place[name] for name in ("sampling", "policy") if place.get(name)}:
            return found
    return {}


def _limits(lineage: Lineage) -> Iterator[str]:
    yield (
        "It can be wrong with confidence, and its thinking need not be how it came to its answer. It was not "
        "trained to refuse or to be safe, and was checked on no other tasks than those of its data. Its "
        "accuracy is in the report of the run that made it."
    )
    if chosen := len(lineage.chosen_on):
        yield (
            f"A checkpoint, or the moment to stop, was chosen on {chosen:,} questions. An accuracy on them "
            "is too good; `tutelage evaluate` refuses them unless told otherwise."
        )
    yield "Its licence follows from that of the model it started from and from those of the data above."


def _line(text: object) -> str:
    """One line of plain text inside Markdown."""
    return cell(visible(text))


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else ""
