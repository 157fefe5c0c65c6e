"""TeacherLogits: a teacher's largest logits on disk, so that a long training runs it once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octavo.core.calibration.statistics.fingerprint import ModelFingerprint
from octavo.core.distillation.top_k import TopK, top_k
from octavo.core.errors import CheckpointError, ConfigError, listed
from octavo.core.evaluation.language import TokenBatch, batches_on
from octavo.core.model.atomic_folder import atomic_folder
from octavo.core.model.shard_reader import ShardReader, read_json, write_manifest
from octavo.core.model.shards import SafetensorsWriter

FILE = "octavo_teacher.json"
_VERSION = 1


class TeacherLogits:
    """The k largest logits of a teacher for the samples of a dataset, in a folder of safetensors shards.

    Samples are known by their tokens, so that they may come in any order and in any batches.

    Attributes:
        directory: The folder.
        temperature: By which the logits were divided.
        k: How many there are for each token.
    """

    def __init__(self, directory: str | Path) -> None:
        """Open what `record` wrote.

        Raises:
            CheckpointError: it is not such a folder, or it is damaged.
        """
        self.directory = Path(directory)
        file = self.directory / FILE
        if not file.is_file():
            raise CheckpointError(f"{directory} has no {FILE}; TeacherLogits.record writes such a folder")
        described = read_json(file)
        if described.get("version") != _VERSION:
            raise CheckpointError(
                f"{file} has version {described.get('version')!r}, expected {_VERSION}; record again"
            )
        self.temperature, self.k = float(described["temperature"]), int(described["k"])
        self._fingerprint = ModelFingerprint(**described["teacher"])
        self._shards = ShardReader(self.directory)
        self._num_samples = int(described["samples"])

    @classmethod
    def record(
        cls,
        teacher: nn.Module,
        batches: Iterable[TokenBatch],
        directory: str | Path,
        k: int = 64,
        temperature: float = 1.0,
        overwrite: bool = False,
    ) -> TeacherLogits:
        """Run `teacher` over the data once and write its `k` largest logits for every token.

        Args:
            teacher: A causal language model.
            batches: As `octavo.perplexity` takes them.
            directory: Where to write; it appears whole or not at all.
            k: Logits to keep of each token: 8 bytes each.
            temperature: Of the distillation that will read them.
            overwrite: Replace such a folder.

        Raises:
            ConfigError: `k` or `temperature` is not positive, or there is no sample.
            ExportError: `directory` cannot be written.
        """
        if k < 1 or not temperature > 0:
            raise ConfigError(f"k={k}, temperature={temperature}: both must be positive")
        device = next(teacher.parameters()).device
        was_training, names = teacher.training, set[str]()
        with atomic_folder(Path(directory), overwrite) as folder, torch.no_grad():
            writer = SafetensorsWriter(folder)
            teacher.eval()
            for batch in batches_on(batches, device):
                outputs = teacher(**batch)
                kept = top_k(getattr(outputs, "logits", outputs), k, temperature)
                for row, tokens in enumerate(batch["input_ids"]):
                    name = _key(tokens)
                    if name not in names:
                        names.add(name)
                        for part, tensor in kept._asdict().items():
                            writer.add(f"{name}.{part}", tensor[row].cpu().contiguous())
            teacher.train(was_training)
            if not names:
                raise ConfigError("there is no sample to record the teacher's logits for")
            write_manifest(folder, writer.finish())
            described: dict[str, Any] = {
                "version": _VERSION,
                "k": k,
                "temperature": temperature,
                "samples": len(names),
                "teacher": asdict(ModelFingerprint.of(teacher)),
            }
            (folder / FILE).write_text(json.dumps(described, indent=2) + "\n")
        return cls(directory)

    def check_teacher(self, teacher: nn.Module) -> None:
        """Refuse logits of another teacher.

        Raises:
            CheckpointError: `teacher` is not the one whose logits these are; what differs is named.
        """
        differences = self._fingerprint.differences(ModelFingerprint.of(teacher))
        if differences:
            raise CheckpointError(
                f"the logits in {self.directory} are of another teacher: {', '.join(differences)} differ; record again"
            )

    def of(self, input_ids: Tensor | None) -> TopK:
        """Return what was recorded for the samples of a batch, on its device.

        Args:
            input_ids: int64 [batch, tokens], as when they were recorded.

        Raises:
            ConfigError: there are no `input_ids`.
            CheckpointError: a sample was not recorded; its tokens are named.
        """
        if input_ids is None:
            raise ConfigError("distillation from recorded logits needs input_ids, found none")
        names = [_key(tokens) for tokens in input_ids]
        for name, tokens in zip(names, input_ids, strict=True):
            if f"{name}.tokens" not in self._shards:
                raise CheckpointError(
                    f"a sample of {len(tokens)} tokens ({listed([str(t) for t in tokens.tolist()], 5)}) is not among "
                    f"the {self._num_samples} recorded in {self.directory}; record the data that is trained on"
                )
        return TopK(
            *(
                torch.stack([self._shards.tensor(f"{name}.{part}") for name in names]).to(input_ids.device)
                for part in TopK._fields
            )
        )


def _key(tokens: Tensor) -> str:
    return hashlib.sha256(tokens.to("cpu", torch.int64).numpy().tobytes()).hexdigest()[:32]
