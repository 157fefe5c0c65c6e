"""RankReader: a TensorRT-LLM checkpoint of any layout as the tensors of the whole model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from octavo.core.errors import CheckpointError, listed, nearest
from octavo.core.model.shard_reader import ShardReader, read_json
from octavo.exporters.tensorrt_llm.layout import Layout, size_of
from octavo.exporters.tensorrt_llm.rank_files import rank_name
from octavo.exporters.tensorrt_llm.sharding import merge_tensor
from octavo.exporters.tensorrt_llm.stages import LAYER, to_global, to_local

CONFIG_FILE, LAYERS_FILE = "config.json", "quant_cfg.json"
_RANK_FILE = re.compile(r"rank\d+\.safetensors")


class RankReader:
    """Read a checkpoint's tensors by the names that they have in a checkpoint of one rank.

    A tensor is put together when it is asked for, and not kept.

    Attributes:
        directory: The folder.
        config: Its config.json.
        layout: Over which ranks it is divided.

    Raises:
        CheckpointError: a file is missing, damaged or one too many; config.json does not describe the files; ranks
            of a stage have different tensors, or one is on the wrong stage. Rank and tensor are named.
        UnsupportedError: which stage a tensor belongs to is not known.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config: dict[str, Any] = _read_config(directory)
        self.layout = Layout.of(self.config)
        self._check_sizes()
        self._check_files()
        files = map(rank_name, range(self.layout.world_size))
        self._ranks = [ShardReader(directory, file) for file in files]
        self._places = dict(self._find_tensors())
        self._check_layers()

    def names(self) -> list[str]:
        """Return the names of all tensors: stage by stage, sorted in each."""
        return list(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def tensor(self, name: str) -> Tensor:
        """Return a tensor of the whole model.

        Raises:
            CheckpointError: there is none of that name, or the ranks' parts do not fit together.
            UnsupportedError: how ranks divide it is not known.
        """
        stage, local_name = self._place(name)
        parts = [self._ranks[rank].tensor(local_name) for rank in self.layout.stage(stage)]
        try:
            return merge_tensor(name, parts, self.config, self.layout)
        except CheckpointError as error:
            raise CheckpointError(f"{self.where(name)}: {error}") from error

    def part_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of what the first rank of its stage has of a tensor, without reading it.

        Raises:
            CheckpointError: there is none of that name.
        """
        stage, local_name = self._place(name)
        return self._ranks[self.layout.stage(stage)[0]].shape(local_name)

    def where(self, name: str) -> str:
        """Return the files and the name of a tensor, for messages."""
        stage, local_name = self._places[name]
        ranks = self.layout.stage(stage)
        numbers = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"
        return f"{self.directory}: tensor {local_name!r} of rank {numbers}"

    def _place(self, name: str) -> tuple[int, str]:
        if name not in self._places:
            raise CheckpointError(f"{self.directory} has no tensor {name!r}.{nearest(name, self._places)}")
        return self._places[name]

    def _check_sizes(self) -> None:
        layers = size_of(self.config, "num_hidden_layers")
        if layers % self.layout.pp_size:
            raise CheckpointError(
                f"{self.directory / CONFIG_FILE} says {layers} layers on {self.layout.pp_size} equal stages"
            )

    def _check_files(self) -> None:
        expected = {rank_name(rank) for rank in range(self.layout.world_size)}
        found = {path.name for path in self.directory.iterdir() if _RANK_FILE.fullmatch(path.name)}
        if found != expected:
            raise CheckpointError(
                f"{self.directory} must hold a file for each of {self.layout.world_size} ranks that config.json names; "
                f"missing: {listed(sorted(expected - found)) or 'none'}; too many: "
                f"{listed(sorted(found - expected)) or 'none'}"
            )

    def _find_tensors(self) -> Iterator[tuple[str, tuple[int, str]]]:
        """Yield (name, (stage, the name there)) of every tensor."""
        for stage in range(self.layout.pp_size):
            ranks = self.layout.stage(stage)
            names = self._ranks[ranks[0]].names()
            for rank in ranks[1:]:
                if differing := sorted(set(names) ^ set(self._ranks[rank].names())):
                    raise CheckpointError(
                        f"{self.directory}: rank {ranks[0]} and rank {rank} must have the same tensors; only one has "
                        f"{listed(differing)}"
                    )
            for name in names:
                whole_name = to_global(name, stage, self.config, self.layout)
                expected, _ = to_local(whole_name, self.config, self.layout)
                if expected != stage:
                    raise CheckpointError(
                        f"{self.directory}: tensor {name!r} is on stage {stage} of {self.layout.pp_size}; it belongs "
                        f"on stage {expected}"
                    )
                yield whole_name, (stage, name)

    def _check_layers(self) -> None:
        """Refuse a checkpoint with a layer that has no tensor, or fewer than another stage's files have bytes for."""
        layers = filter(None, map(LAYER.fullmatch, self._places))
        found = Counter(int(layer["number"]) for layer in layers)
        missing = [
            str(number) for number in range(size_of(self.config, "num_hidden_layers")) if not found[number]
        ]
        if missing:
            raise CheckpointError(
                f"{self.directory} has no tensor of layers {listed(missing)}; config.json says there are "
                f"{self.config['num_hidden_layers']} in all"
            )


def is_tensorrt_llm(directory: Path) -> bool:
    """Whether a folder holds a checkpoint of this format."""
    return (directory / CONFIG_FILE).is_file() and any(
        _RANK_FILE.fullmatch(path.name) for path in directory.iterdir()
    )


def _read_config(directory: Path) -> dict[str, Any]:
    parts = [name for name in ("encoder", "decoder") if (directory / name / CONFIG_FILE).is_file()]
    if parts and not (directory / CONFIG_FILE).exists():
        raise CheckpointError(f"{directory} holds checkpoints in {' and '.join(parts)}; give one of these")
    return read_json(directory / CONFIG_FILE)
