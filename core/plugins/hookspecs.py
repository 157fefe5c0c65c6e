"""The hooks: what core asks of adapters and exporters, by whom and when each is called.

A plugin is a module (or object) whose functions are marked with `octavo.hookimpl` and named as here; it may
leave out arguments it does not need. Adapters look at the model first and return None for one that is not
theirs; most hooks stop at the first answer. Hooks run per model, never inside a forward pass. A plugin module
imports core and the standard library only, and its framework inside the functions that need it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from octavo.core.errors import ConfigError
from octavo.core.model.checkpoint_layout import CheckpointLayout
from octavo.core.model.description import ModelDescription
from octavo.core.modules.experts import QuantExperts
from octavo.core.plugins.markers import hookspec
from octavo.core.ranks.rank_groups import RankGroups


@dataclass(frozen=True)
class PluginInfo:
    """What `octavo plugins` shows of a plugin.

    Attributes:
        name: Short name, the same as that of its entry point.
        summary: One line.
        requires: Importable packages without which it does nothing.
    """

    name: str
    summary: str
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataRequest:
    """How text becomes batches of tokens.

    Raises ConfigError where a number is below 1.

    Attributes:
        source: A text file (one stream, cut into windows), a .jsonl file of documents with a `text` field, or
            what `datasets.load_dataset` takes, as `name` or `name#split`.
        num_samples: How many samples at most.
        sequence_length: Tokens per sample at most.
        batch_size: Samples per batch.
        seed: Chooses the samples; the same seed gives the same samples.
    """

    source: str
    num_samples: int = 512
    sequence_length: int = 512
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_samples", "sequence_length", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, found {getattr(self, name)}")


@hookspec
def plugin_info() -> PluginInfo:  # type: ignore[empty-body]
    """Describe the plugin. Called once, when plugins are loaded."""


@hookspec
def quantized_classes() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Return {layer class: quantized class}, both as `package.module:Class`. Called once, at loading."""


@hookspec
def exporters() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Return {name: `package.module:object`} of `core.model.exporter.Exporter` objects. Called at loading."""


@hookspec
def verifiers() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Return {name: `package.module:object`} of `core.verification.verifier.Verifier` objects. Called at loading."""


@hookspec
def kernels() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Return {name: `package.module:object`} of `core.ops.kernels.Kernels` objects. Called at loading."""


@hookspec
def calibration_algorithms() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Return {method: `package.module:Class`} of `core.calibration.algorithm.Algorithm` classes. Called at loading."""


@hookspec
def check_model(model: nn.Module) -> None:
    """Raise an OctavoError for a model of yours that must not be quantized. Called first by the plan."""


@hookspec(firstresult=True)
def describe_model(model: nn.Module) -> ModelDescription | None:
    """Return the model's blocks, roles and fused groups. Called by the plan and by exporters."""


@hookspec(firstresult=True)
def tiny_inputs(model: nn.Module) -> Mapping[str, Any] | None:
    """Return keyword arguments for the smallest forward pass. Called by the dataflow probe."""


@hookspec(firstresult=True)
def attention_layers(model: nn.Module) -> Mapping[str, nn.Module] | None:
    """Return the layers, by name, whose q, k and v the adapter can hand to quantizers. Called by the plan."""


@hookspec(firstresult=True)
def left_out_attention(model: nn.Module) -> Mapping[str, str] | None:
    """Return {layer name: reason} of attention layers whose q, k and v it cannot hand over. Called by the plan."""


@hookspec(firstresult=True)
def expert_layers(model: nn.Module) -> Mapping[str, type[QuantExperts]] | None:
    """Return {name: mixin} of layers whose experts' weights are stacked. Called by the plan."""


@hookspec(firstresult=True)
def rank_groups(model: nn.Module) -> Mapping[str, RankGroups] | None:
    """Return, by quantizer name (`<layer>.<quantizer>`), which ranks see parts of the same tensor.

    Called by calibration on a quantized model, by every rank: statistics are combined over these groups.
    """


@hookspec
def prepare_model(model: nn.Module) -> None:
    """Make the framework run quantized layers. Called after layers were swapped; must be reversible."""


@hookspec
def unprepare_model(model: nn.Module) -> None:
    """Undo `prepare_model`. Called before layers are swapped back."""


@hookspec(firstresult=True)
def gathered_parameters(parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None] | None:
    """Return a context in which parameters that your framework has divided among ranks have all of their values.

    Called on every rank with the same parameters, before calibration, training or an export reads them; torch's own
    (DTensors) are not asked for. None for parameters that are not yours.
    """


@hookspec
def weights_packed(model: nn.Module) -> None:
    """Let the framework save a model whose weights are codes now. Called by `compress`, and when it is restored."""


@hookspec
def weights_unpacked(model: nn.Module) -> None:
    """Undo `weights_packed`. Called by `decompress`."""


@hookspec(firstresult=True)
def checkpoint_layout(model: nn.Module, names: Sequence[str]) -> CheckpointLayout | None:
    """Return where these parameters are in the framework's checkpoints. Called by exporters and readers."""


@hookspec(firstresult=True)
def write_companions(model: nn.Module, directory: Path, tokenizer: Any, dtype: torch.dtype) -> bool | None:
    """Write the model's config, tokenizer and other files beside its weights. Called by exporters."""


@hookspec(firstresult=True)
def load_model(
    path: Path, dtype: torch.dtype | None, trust_remote_code: bool, quiet: bool
) -> nn.Module | None:
    """Load an unquantized checkpoint for evaluation and calibration. Called by the command line.

    `dtype` None stands for the config's, as in `build_model`; `quiet` for no progress bars.
    """


@hookspec(firstresult=True)
def build_model(directory: Path, dtype: torch.dtype | None, trust_remote_code: bool) -> nn.Module | None:
    """Build the model of a checkpoint without loading its weights. Called by readers and by the command line."""


@hookspec(firstresult=True)
def build_unloaded(
    directory: Path, names: Collection[str], dtype: torch.dtype | None, trust_remote_code: bool
) -> nn.Module | None:
    """Return what `load_model` would, with every tensor on the meta device. Called by streaming.

    `names` are those of the checkpoint's tensors, which may be older than the model's.
    """


@hookspec(firstresult=True)
def fill_buffers(model: nn.Module) -> bool | None:
    """Give the buffers of a model of `build_unloaded` that checkpoints do not hold their values; return True."""


@hookspec(firstresult=True)
def load_tokenizer(path: Path, trust_remote_code: bool) -> Any:
    """Load the tokenizer of a checkpoint. Called by the command line."""


@hookspec(firstresult=True)
def text_batches(tokenizer: Any, request: DataRequest) -> Sequence[Mapping[str, torch.Tensor]] | None:
    """Tokenize text into batches for calibration or evaluation. Called by the command line."""
