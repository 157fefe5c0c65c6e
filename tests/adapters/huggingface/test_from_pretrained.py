"""After `enable_huggingface`, plain `from_pretrained` loads what Octavo exported and saved, in a new process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

import octavo
from helpers.evaluation_checkpoints import changed_copy, quantized
from helpers.tiny import tiny_llama, token_batches
from octavo.adapters.huggingface.from_pretrained import fill_saved, folder_of
from octavo.core.errors import CheckpointError, PluginError, UnsupportedError
from octavo.core.modules import quantized_layers

FORMATS = {
    "FP8_DEFAULT_CFG+FP8_KV_CFG": torch.float32,
    "NVFP4_DEFAULT_CFG": torch.bfloat16,
    "INT4_BLOCKWISE_WEIGHT_ONLY_CFG": torch.bfloat16,
}
LOAD = """
import sys
import octavo
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

octavo.enable_huggingface()
tokens, *folders = sys.argv[1:]
for folder in folders:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    logits = model(load_file(tokens)["tokens"]).logits.detach()
    save_file({"logits": logits, "clean": logits.new_tensor(not any(info.values()))}, folder + ".logits")
"""


@pytest.fixture(scope="module", params=FORMATS)
def folders(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path, Path]:
    """A quantized model, its exported checkpoint, and the folder that `octavo.save` made of it."""
    folder, dtype = tmp_path_factory.mktemp("folders"), FORMATS[request.param]
    model = quantized(tiny_llama(dtype, tie_word_embeddings=dtype is torch.bfloat16), request.param)
    octavo.export_hf_checkpoint(model, export_dir=folder / "exported", quiet=True)
    octavo.save(model, folder / "saved")
    octavo.enable_huggingface()
    return model, folder / "exported", folder / "saved"


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(token_batches()[0]).logits
    return found


def test_a_new_process_loads_what_was_exported_and_what_was_saved(
    folders: tuple[nn.Module, Path, Path], tmp_path: Path
) -> None:
    model, exported, saved = folders
    save_file({"tokens": token_batches()[0]}, tmp_path / "tokens")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "tokens"), str(exported), str(saved)]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "LOAD REPORT" not in done.stderr
    for folder, expected in ((exported, logits(octavo.load_quantized(exported))), (saved, logits(model))):
        found = load_file(f"{folder}.logits")
        assert torch.equal(found["logits"], expected)
        assert found["clean"]


def test_a_saved_model_goes_on_as_one_quantized_here(
    folders: tuple[nn.Module, Path, Path], tmp_path: Path
) -> None:
    _, exported, saved = folders
    loaded = AutoModelForCausalLM.from_pretrained(saved)

    octavo.export_hf_checkpoint(loaded, export_dir=tmp_path / "again", quiet=True)

    for name in ("model.safetensors", "hf_quant_config.json", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes()
    octavo.unquantize(loaded).save_pretrained(tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert list(quantized_layers(plain)) == []


def test_a_loaded_checkpoint_is_not_saved_as_what_it_is_not(
    folders: tuple[nn.Module, Path, Path], tmp_path: Path
) -> None:
    _, exported, _ = folders
    loaded = AutoModelForCausalLM.from_pretrained(exported)
    with pytest.raises(ValueError, match="quantized with modelopt and is not serializable"):
        loaded.save_pretrained(tmp_path / "no")
    served = octavo.unquantize(octavo.load_quantized(exported))

    plain = loaded.dequantize()

    assert list(quantized_layers(plain)) == []
    assert torch.equal(logits(plain), logits(served))
    plain.save_pretrained(tmp_path / "plain")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "plain")), logits(plain))


def test_the_dtype_asked_for(folders: tuple[nn.Module, Path, Path]) -> None:
    _, exported, saved = folders
    loaded = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float16)

    served = dict(octavo.load_quantized(exported).named_parameters())
    assert all(torch.equal(value, served[name].half()) for name, value in loaded.named_parameters())
    assert {value.dtype for value in loaded.parameters()} == {torch.float16}
    with pytest.raises(CheckpointError, match=r"has dtype torch\.\w+, the model's has torch.float16"):
        AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float16)


def test_a_missing_tensor_is_an_error_and_not_whatever_memory_holds(
    folders: tuple[nn.Module, Path, Path], tmp_path: Path
) -> None:
    """transformers fills what a file lacks with uninitialised memory."""
    _, exported, saved = folders
    name = "model.layers.1.mlp.down_proj.weight_scale"
    damaged = changed_copy(exported, tmp_path / "exported", lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.down_proj"):
        AutoModelForCausalLM.from_pretrained(damaged)

    name = "model.layers.0.mlp.up_proj.weight_quantizer.calibrated"
    (tmp_path / "saved").mkdir()
    for path in saved.iterdir():
        (tmp_path / "saved" / path.name).write_bytes(path.read_bytes())
    tensors = {key: value for key, value in load_file(saved / "model.safetensors").items() if key != name}
    assert len(tensors) == len(load_file(saved / "model.safetensors")) - 1
    save_file(tensors, tmp_path / "saved" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"missing '{name}'"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "saved")


def test_offloaded_weights_are_refused(folders: tuple[nn.Module, Path, Path], tmp_path: Path) -> None:
    _, exported, _ = folders
    device_map = {"model.embed_tokens": "cpu", "model": "disk", "lm_head": "cpu"}
    with pytest.raises(
        UnsupportedError, match=r"^the device_map puts model on disk; give a device_map that keeps all"
    ):
        AutoModelForCausalLM.from_pretrained(exported, device_map=device_map, offload_folder=tmp_path)
    with pytest.raises(
        UnsupportedError, match=r"^\d+ weights are offloaded \(model\.embed_tokens\.weight, model\."
    ):
        fill_saved(tiny_llama().to("meta"), exported, None)
    with pytest.raises(
        CheckpointError, match="quant_method 'modelopt' is loaded from its folder, found no files"
    ):
        folder_of(None, "modelopt")


def test_a_quantizer_of_somebody_else_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    class Taken:
        __module__ = "somebody.elses"

    monkeypatch.setitem(AUTO_QUANTIZER_MAPPING, "modelopt", Taken)
    with pytest.raises(
        PluginError, match=r"has a quantizer called 'modelopt' already, somebody\.elses:.*Taken"
    ):
        octavo.enable_huggingface()
    assert AUTO_QUANTIZER_MAPPING["modelopt"] is Taken


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.adapters.huggingface.from_pretrained.find_spec", lambda name: None)
    with pytest.raises(PluginError, match=r"^transformers is not installed; pip install 'octavo\[hf\]'$"):
        octavo.enable_huggingface()
