"""Resharding whole folders: what is written beside the tensors, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import octavo
from helpers.trtllm_checkpoints import config_of, same, tensors_of, write_one_rank
from octavo.core.errors import CheckpointError, ExportError, UnsupportedError
from octavo.exporters.tensorrt_llm.sharding import EMBEDDING, HEAD


def checkpoint(directory: Path, family: str = "llama", algo: str | None = "FP8", **changes: Any) -> Path:
    config = config_of(family, algo, **changes)
    return write_one_rank(directory, config, tensors_of(config))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("family", "tp", "pp", "ep"), [("mqa", 4, 2, 1), ("mixtral", 4, 2, 2), ("gpt2", 2, 4, 1)]
)
def test_there_and_back(tmp_path: Path, family: str, tp: int, pp: int, ep: int) -> None:
    source = checkpoint(tmp_path / "one", family)
    octavo.reshard_tensorrt_llm(source, tmp_path / "many", tp, pp, ep)
    octavo.reshard_tensorrt_llm(tmp_path / "many", tmp_path / "other", 2, 1, 1)
    octavo.reshard_tensorrt_llm(tmp_path / "other", tmp_path / "back")

    assert sorted(path.name for path in (tmp_path / "many").glob("rank*")) == sorted(
        f"rank{rank}.safetensors" for rank in range(tp * pp)
    )
    before, after = (load_file(folder / "rank0.safetensors") for folder in (source, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert [name for name in before if not same(before[name], after[name])] == []
    config = read_json(tmp_path / "back" / "config.json")
    config["mapping"] = {key: config["mapping"][key] for key in ("world_size", "tp_size", "pp_size")}
    assert config == read_json(source / "config.json")


def test_a_shared_head_is_written_out_where_no_rank_has_both(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "one", algo=None, share_embedding_table=True)
    octavo.reshard_tensorrt_llm(source, tmp_path / "two", 2)
    octavo.reshard_tensorrt_llm(source, tmp_path / "deep", 1, 2)

    assert HEAD not in load_file(tmp_path / "two" / "rank1.safetensors")
    assert read_json(tmp_path / "two" / "config.json")["share_embedding_table"] is True
    first, last = (load_file(tmp_path / "deep" / f"rank{rank}.safetensors") for rank in (0, 1))
    assert same(first[EMBEDDING], last[HEAD])
    assert HEAD not in first
    assert read_json(tmp_path / "deep" / "config.json")["share_embedding_table"] is False


def test_a_head_that_another_writer_left_out_of_the_last_stage(tmp_path: Path) -> None:
    """ModelOpt's files of several stages have neither a head nor a word of it."""
    source = checkpoint(tmp_path / "one", algo=None)
    octavo.reshard_tensorrt_llm(source, tmp_path / "deep", 1, 2)
    without = {
        name: t for name, t in load_file(tmp_path / "deep" / "rank1.safetensors").items() if name != HEAD
    }
    (tmp_path / "deep" / "octavo_manifest.rank1.json").unlink()
    from safetensors.torch import save_file

    save_file(without, tmp_path / "deep" / "rank1.safetensors")
    octavo.reshard_tensorrt_llm(tmp_path / "deep", tmp_path / "whole")
    octavo.reshard_tensorrt_llm(tmp_path / "deep", tmp_path / "other", 2, 2)

    assert read_json(tmp_path / "whole" / "config.json")["share_embedding_table"] is True
    assert HEAD not in load_file(tmp_path / "whole" / "rank0.safetensors")
    parts = [load_file(tmp_path / "other" / f"rank{rank}.safetensors") for rank in range(4)]
    assert same(parts[1][EMBEDDING], parts[3][HEAD])


def test_formats_of_layers_get_the_numbers_of_their_stage(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "one")
    layers = {f"transformer.layers.{i}.mlp.fc": {"quant_algo": "FP8" if i % 2 else "W8A16"} for i in range(4)}
    said = {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": None, "quantized_layers": layers}
    (source / "quant_cfg.json").write_text(json.dumps(said), encoding="utf-8")
    octavo.reshard_tensorrt_llm(source, tmp_path / "two", 1, 2)
    octavo.reshard_tensorrt_llm(tmp_path / "two", tmp_path / "back")

    local = read_json(tmp_path / "two" / "quant_cfg.json")["quantized_layers"]
    assert local == {
        f"transformer.layers.{i}.mlp.fc": layers[f"transformer.layers.{i}.mlp.fc"] for i in range(2)
    }
    assert read_json(tmp_path / "back" / "quant_cfg.json") == said
    with pytest.raises(UnsupportedError, match="with 4 stages both have the same name; choose fewer stages"):
        octavo.reshard_tensorrt_llm(source, tmp_path / "four", 1, 4)
    assert not (tmp_path / "four").exists()


def test_formats_of_layers_that_are_no_table(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "one")
    (source / "quant_cfg.json").write_text('{"quantized_layers": ["x"]}', encoding="utf-8")
    with pytest.raises(
        CheckpointError, match=r"quant_cfg.json must hold 'quantized_layers' by module, found \['x'\]"
    ):
        octavo.reshard_tensorrt_llm(source, tmp_path / "out")


def test_exclusions_get_the_numbers_of_their_stage(tmp_path: Path) -> None:
    exclude = [
        "lm_head",
        "transformer.layers.0*",
        "transformer.layers.1.mlp.fc",
        "transformer.layers.3.mlp.fc",
    ]
    source = checkpoint(tmp_path / "one")
    config = read_json(source / "config.json")
    config["quantization"]["exclude_modules"] = [*exclude[:1], *exclude[2:]]
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    octavo.reshard_tensorrt_llm(source, tmp_path / "two", 1, 2)

    found = read_json(tmp_path / "two" / "config.json")["quantization"]["exclude_modules"]
    assert found == ["lm_head", "transformer.layers.1.mlp.fc"]


def test_exclusions_that_are_no_list(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "one", quantization={"quant_algo": "FP8", "exclude_modules": "lm_head"})
    with pytest.raises(CheckpointError, match="must be a list of patterns, found 'lm_head'"):
        octavo.reshard_tensorrt_llm(source, tmp_path / "out")


def test_other_files_come_along(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "one")
    (source / "tokenizer.json").write_text("{}", encoding="utf-8")
    octavo.reshard_tensorrt_llm(source, tmp_path / "two", 2)
    octavo.reshard_tensorrt_llm(tmp_path / "two", tmp_path / "back")

    names = sorted(path.name for path in (tmp_path / "back").iterdir())
    assert names == ["config.json", "octavo_manifest.rank0.json", "rank0.safetensors", "tokenizer.json"]


def test_a_folder_is_replaced_only_on_request_and_only_our_own(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "one")
    octavo.reshard_tensorrt_llm(source, tmp_path / "two", 2)
    with pytest.raises(ExportError, match="two is not empty"):
        octavo.reshard_tensorrt_llm(source, tmp_path / "two", 4)
    octavo.reshard_tensorrt_llm(source, tmp_path / "two", 4, overwrite=True)
    assert (tmp_path / "two" / "rank3.safetensors").exists()
    other = shutil.copytree(source, tmp_path / "other")
    with pytest.raises(ExportError, match="Octavo did not write it and does not replace it"):
        octavo.reshard_tensorrt_llm(source, other, 2, overwrite=True)


@pytest.mark.parametrize("out", [".", ".."])
def test_the_checkpoint_itself_is_never_replaced(tmp_path: Path, out: str) -> None:
    source = checkpoint(tmp_path / "a" / "one")
    with pytest.raises(ExportError, match=r"holds the checkpoint .*; give another folder"):
        octavo.reshard_tensorrt_llm(source, source / out, 2, overwrite=True)


def test_a_model_that_cannot_be_divided_leaves_nothing(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "one")
    with pytest.raises(ExportError, match="num_attention_heads 8 is not divisible by 3 ranks"):
        octavo.reshard_tensorrt_llm(source, tmp_path / "three", 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one"]
