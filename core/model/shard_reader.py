"""ShardReader: the tensors of a safetensors checkpoint by name, with every file and tensor checked."""

from __future__ import annotations

import json
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from octavo.core.errors import CheckpointError, listed, nearest
from octavo.core.model.shard_file import ManifestEntry, open_shard
from octavo.core.model.shards import INDEX_NAME, SINGLE_NAME

MANIFEST_NAME = "octavo_manifest.json"
MANIFEST_VERSION = 1


class ShardReader:
    """Read tensors by name from one safetensors file or an index and its shards.

    Tensors are read when asked for and not kept. Where the folder has a manifest, they are held to it.

    Args:
        directory: The folder.
        file: Read this file alone, and hold it to a manifest of its own; otherwise what Hugging Face names so.

    Raises:
        CheckpointError: the folder has no checkpoint, a shard is missing or damaged, an index names a shard
            outside the folder or a tensor that its shard does not have, or the manifest names a tensor that is
            not there. File and tensor are named.
    """

    def __init__(self, directory: Path, file: str | None = None) -> None:
        self.directory = directory
        self._files: dict[str, Any] = {}
        self._shard_of = self._read_index() if file is None else dict.fromkeys(self._open(file).keys(), file)
        self._manifest = read_manifest(directory, manifest_name(file))
        lost = sorted(self._manifest.keys() - self._shard_of.keys())
        if lost:
            raise CheckpointError(
                f"{directory} lacks tensors of its {manifest_name(file)}: {listed(lost)}. Copy or export the "
                "checkpoint again"
            )

    def names(self) -> list[str]:
        """Return the names of all tensors, sorted."""
        return sorted(self._shard_of)

    def __contains__(self, name: str) -> bool:
        return name in self._shard_of

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return tuple(self._file(name).get_slice(name).get_shape())

    def stored_dtype(self, name: str) -> str:
        """Return a tensor's dtype as safetensors spells it, `F8_E4M3`, without reading it."""
        return str(self._file(name).get_slice(name).get_dtype())

    def tensor(self, name: str) -> Tensor:
        """Read a tensor.

        Raises:
            CheckpointError: there is none of that name, or it is not what the manifest says.
        """
        tensor: Tensor = self._file(name).get_tensor(name)
        if name in self._manifest:
            self._check(name, ManifestEntry.of(tensor, self._shard_of[name]))
        return tensor

    def entries(self, name: str, dim: int, start: int, length: int) -> Tensor:
        """Read `length` entries of a tensor along one dim, and no others; a manifest has nothing to hold them to.

        Raises:
            CheckpointError: there is no tensor of that name, or it is shorter.
        """
        found = self._file(name).get_slice(name)
        shape = found.get_shape()
        if not 0 <= dim < len(shape) or start + length > shape[dim]:
            raise CheckpointError(
                f"{self.where(name)} has shape {list(shape)}, and entries {start} to {start + length} along dim {dim} "
                "are needed; the checkpoint is not of the model in its config.json"
            )
        run: Tensor = found[(slice(None),) * dim + (slice(start, start + length),)]
        return run

    def positive_number(self, name: str) -> Tensor:
        """Return a scale in fp32.

        Raises:
            CheckpointError: it is not one positive, finite number.
        """
        return positive_number(self.tensor(name), self.where(name))

    def where(self, name: str) -> str:
        """Return the file and the name of a tensor, for messages."""
        return f"{self.directory / self._shard_of[name]}: tensor {name!r}"

    def _file(self, name: str) -> Any:
        if name not in self._shard_of:
            raise CheckpointError(f"{self.directory} has no tensor {name!r}.{nearest(name, self._shard_of)}")
        return self._open(self._shard_of[name])

    def _open(self, shard: str) -> Any:
        if shard not in self._files:
            self._files[shard] = open_shard(self.directory / shard)
        return self._files[shard]

    def _check(self, name: str, found: ManifestEntry) -> None:
        written = self._manifest[name]
        for what, is_now, was in (
            ("dtype", found.dtype, written.dtype),
            ("shape", found.shape, written.shape),
            ("SHA-256", found.sha256, written.sha256),
        ):
            if is_now != was:
                raise CheckpointError(
                    f"{self.where(name)} is damaged: its {what} is {is_now}, written was {was}. "
                    "Copy or export the checkpoint again"
                )

    def _read_index(self) -> dict[str, str]:
        if not (self.directory / INDEX_NAME).exists():
            if not (self.directory / SINGLE_NAME).exists():
                raise CheckpointError(f"{self.directory} holds neither {SINGLE_NAME} nor {INDEX_NAME}")
            return dict.fromkeys(self._open(SINGLE_NAME).keys(), SINGLE_NAME)
        shard_of = read_json(self.directory / INDEX_NAME).get("weight_map")
        if not isinstance(shard_of, dict):
            raise CheckpointError(
                f"{self.directory / INDEX_NAME} must hold a 'weight_map' of tensor to file, found {shard_of!r}"
            )
        for name, shard in shard_of.items():
            if not isinstance(shard, str) or PurePath(shard).name != shard:
                raise CheckpointError(
                    f"{self.directory / INDEX_NAME}: tensor {name!r} is said to be in {shard!r}, outside the folder; "
                    "shard names must be plain file names"
                )
        for shard in sorted(set(shard_of.values())):
            listed_here = {name for name, home in shard_of.items() if home == shard}
            missing = sorted(listed_here - set(self._open(shard).keys()))
            if missing:
                raise CheckpointError(
                    f"{self.directory / shard} lacks tensors of the index: {listed(missing)}"
                )
        return shard_of


def positive_number(scale: Tensor, where: str) -> Tensor:
    """Return a scale in fp32.

    Raises:
        CheckpointError: it is not one positive, finite number; `where` it is, is named.
    """
    scale = scale.float()
    if scale.numel() != 1 or not scale.isfinite().all() or scale.item() <= 0:
        raise CheckpointError(f"{where} must be one positive number, found {scale}")
    return scale


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        CheckpointError: the file is missing or is not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # a ValueError says: no UTF-8, or no JSON
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold a JSON object, found {type(data).__name__}")
    return data


def manifest_name(file: str | None) -> str:
    """Return the name of a checkpoint's manifest, or of that of one `file` whose tensors' names recur in others."""
    return MANIFEST_NAME if file is None else f"octavo_manifest.{file.removesuffix('.safetensors')}.json"


def write_manifest(directory: Path, manifest: dict[str, ManifestEntry], name: str = MANIFEST_NAME) -> None:
    """Write the manifest of a checkpoint beside its shards."""
    tensors = {
        name: {"shard": e.shard, "dtype": e.dtype, "shape": list(e.shape), "sha256": e.sha256}
        for name, e in sorted(manifest.items())
    }
    text = json.dumps({"version": MANIFEST_VERSION, "tensors": tensors}, indent=1)
    (directory / name).write_text(text + "\n", encoding="utf-8")


def read_manifest(directory: Path, name: str = MANIFEST_NAME) -> dict[str, ManifestEntry]:
    """Read the manifest of a checkpoint; empty when there is none (other tools write none).

    Raises:
        CheckpointError: the file is damaged or of another version.
    """
    path = directory / name
    if not path.exists():
        return {}
    data = read_json(path)
    if data.get("version") != MANIFEST_VERSION:
        raise CheckpointError(
            f"{path} has version {data.get('version')!r}; this Octavo reads version {MANIFEST_VERSION}. Upgrade it, or "
            "remove the file to read the checkpoint without its checks"
        )
    try:
        return {
            name: ManifestEntry(e["shard"], e["dtype"], tuple(e["shape"]), e["sha256"])
            for name, e in data["tensors"].items()
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error!r}): it must hold shard, dtype, shape and sha256 of each of its 'tensors'. "
            "Copy or export the checkpoint again"
        ) from error


def config_dtype(config: dict[str, Any], directory: Path) -> torch.dtype:
    """Return the float dtype that a config.json names; float32 where it names none.

    Raises:
        CheckpointError: it names something else.
    """
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise CheckpointError(
            f"{directory / 'config.json'} has dtype {name!r}, which is no float dtype of torch"
        )
    return dtype
