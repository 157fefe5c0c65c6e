"""The verifier of this dialect, as core knows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from octavo.core.model.shard_file import open_shard
from octavo.core.model.shard_reader import read_json
from octavo.core.verification.finding import Finding, error, warning
from octavo.exporters.tensorrt_llm.verification.config_rules import check_config, reader_table
from octavo.exporters.tensorrt_llm.verification.rank_tensors import RankRules


class RankFile:
    """The tensors of one rank; see `core.verification.stored_files.StoredTensors`.

    Raises:
        CheckpointError: the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._file: Any = open_shard(path)
        self.names = frozenset(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return tuple(self._file.get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype as safetensors spells it."""
        return str(self._file.get_slice(name).get_dtype())

    def tensor(self, name: str) -> Tensor:
        """Read a tensor."""
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


class TensorRtLlmVerifier:
    """Holds TensorRT-LLM checkpoints to what the engine builder reads."""

    name = "tensorrt_llm"

    def detect(self, directory: Path) -> bool:
        """Whether `directory` holds a checkpoint of this dialect."""
        file = directory / "config.json"
        return file.is_file() and {"architecture", "mapping"} & read_json(file).keys() != set()

    def verify(self, directory: Path, consumer: str, trust_remote_code: bool) -> Iterator[Finding]:
        """Yield what `consumer` would find wrong; see `core.verification.verifier.Verifier`."""
        config = read_json(directory / "config.json")
        if consumer != "trtllm":
            needed = f"a checkpoint that {consumer} reads: only TensorRT-LLM's engine builder takes this one"
            yield error(
                "config.json", "a TensorRT-LLM checkpoint", needed, "Export a Hugging Face checkpoint."
            )
            return
        problems = list(check_config(config))
        yield from problems
        if any(problem.severity == "error" for problem in problems):
            return
        if config["architecture"] not in reader_table()["architectures"]:
            known = ", ".join(reader_table()["architectures"])
            yield warning(
                "config.json: architecture", repr(config["architecture"]), f"one whose tensors are known: {known}",
                "Its tensors were not looked at.",
            )  # fmt: skip
            return
        mixed = directory / "quant_cfg.json"
        is_mixed = (config.get("quantization") or {}).get("quant_algo") == "MIXED_PRECISION"
        rules = RankRules(config, read_json(mixed).get("quantized_layers", {}) if is_mixed else {})
        for rank in range((config.get("mapping") or {}).get("world_size", 1)):
            for finding in rules.check(RankFile(directory / f"rank{rank}.safetensors"), rank):
                yield replace(finding, place=f"rank{rank}.safetensors: {finding.place}")


VERIFIER = TensorRtLlmVerifier()
