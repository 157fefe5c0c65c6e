"""`enable_huggingface`: transformers' own `from_pretrained` loads what Octavo wrote.

Through transformers' registry of quantization methods; nothing is patched. transformers builds the model and makes
room for its tensors, where it wants them; Octavo's readers fill them in, with the checks and the numbers that
`octavo.load_quantized` and `octavo.restore` have.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.core.calibration.quantize import unquantize
from octavo.core.errors import CheckpointError, PluginError, UnsupportedError, listed
from octavo.core.evaluation.read_back import exporter_of, fill_model
from octavo.core.modes.saved_record import HF_METHOD, SavedRecord, described_in_config, read_record
from octavo.core.modes.storage import attach_modes, load_tensors
from octavo.core.packed import PackedView
from octavo.core.plugins import plugins

_NO_OFFLOAD = "give a device_map that keeps all of them on devices"


def enable_huggingface() -> None:
    """Let `AutoModel….from_pretrained(folder)` load models that Octavo exported or saved, in this process.

    Call it once, before loading. An exported checkpoint becomes the model that `octavo.load_quantized` returns:
    weights dequantized, activations quantized in simulation; `model.dequantize()` takes its quantizers off. A folder
    that `octavo.save` wrote becomes the model that `octavo.restore` returns. Formats that transformers has a quantizer
    of its own for stay with it.

    Raises:
        PluginError: transformers is not installed, or somebody else's quantizer has the name of a format already.
    """
    if find_spec("transformers") is None:
        raise PluginError("transformers is not installed; pip install 'octavo[hf]'")
    from transformers.quantizers.auto import (
        AUTO_QUANTIZER_MAPPING,
        register_quantization_config,
        register_quantizer,
    )

    quantizer, config = quantizer_classes()
    exported = {plugins().exporter(name).quant_method for name in plugins().exporter_names()}
    for method in sorted({HF_METHOD, *exported}):
        present = AUTO_QUANTIZER_MAPPING.get(method)
        if present is None:
            register_quantizer(method)(quantizer)
            register_quantization_config(method)(config)
        elif present is not quantizer and not present.__module__.startswith("transformers."):
            raise PluginError(
                f"transformers has a quantizer called {method!r} already, {present.__module__}:{present.__qualname__}; "
                "leave out what registered it, or read checkpoints with octavo.load_quantized"
            )


def check_device_map(device_map: Any) -> None:
    """Refuse to put weights on disk, where nobody could fill them in.

    Raises:
        UnsupportedError: a part of the model is mapped to the disk; it is named.
    """
    placed = device_map if isinstance(device_map, Mapping) else {}
    on_disk = [name for name, device in placed.items() if device == "disk"]
    if on_disk:
        raise UnsupportedError(f"the device_map puts {listed(on_disk, 2)} on disk; {_NO_OFFLOAD}")


def folder_of(checkpoint_files: list[str] | None, method: str) -> Path:
    """Return the folder that a checkpoint's files are in.

    Raises:
        CheckpointError: transformers was given tensors and no files.
    """
    if not checkpoint_files:
        raise CheckpointError(f"a model of quant_method {method!r} is loaded from its folder, found no files")
    return Path(checkpoint_files[0]).parent


def fill_saved(model: Any, directory: Path, saved: SavedRecord | None) -> None:
    """Fill a model that transformers built with the tensors in `directory`.

    Args:
        model: The model, with the structure of its modes where it was saved with modes.
        directory: Where its files are.
        saved: The record of its modes; None for a checkpoint that an exporter wrote.

    Raises:
        CheckpointError, UnsupportedError: as in `load_quantized` and `restore`; or weights are offloaded.
    """
    offloaded = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if offloaded:
        raise UnsupportedError(
            f"{len(offloaded)} weights are offloaded ({listed(offloaded, 2)}); {_NO_OFFLOAD}"
        )
    if saved is not None:
        load_tensors(model, directory, saved)
    else:
        fill_model(model, exporter_of(directory).open(directory))


def take_quantizers_off(model: Any, dtype: torch.dtype | None) -> Any:
    """Return `model` without quantizers, converted to `dtype` where it has another one."""
    unquantize(model)
    if dtype not in (None, model.dtype):  # converting would also round the buffers that stay fp32
        model.to(dtype)
    return model


@cache
def quantizer_classes() -> tuple[type, type]:
    """Return our quantizer and config classes, which need transformers' own as bases."""
    from transformers.core_model_loading import WeightConverter
    from transformers.quantizers import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    class OctavoConfig(QuantizationConfigMixin):  # type: ignore[misc]
        """The `quantization_config` of a checkpoint, kept as it is."""

        def __init__(self, **fields: Any) -> None:
            self.__dict__.update(fields)

    class OctavoQuantizer(HfQuantizer):  # type: ignore[misc]
        """Loads what Octavo wrote; see `enable_huggingface`."""

        is_trainable = False

        def is_serializable(self) -> bool:
            """Say no for exported checkpoints: the weights are dequantized, and would be saved as what they are not."""
            return bool(self.quantization_config.quant_method == HF_METHOD)

        def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
            """Return what `save_pretrained` writes; the record of modes goes into the config, which follows."""
            model.config.quantization_config = described_in_config(model)
            return model.state_dict(), {}

        def update_weight_conversions(self, weight_conversions: Any, model: Any) -> list[Any]:
            """Keep transformers from taking codes for weights, and from fusing them."""
            return [WeightConverter("weight", "weight", [_allocation()])]

        def validate_environment(self, device_map: Any = None, **_: Any) -> None:
            """Refuse what cannot work, before any work."""
            check_device_map(device_map)

        def _process_model_before_weight_loading(
            self, model: Any, checkpoint_files: list[str] | None = None, **_: Any
        ) -> None:
            method = self.quantization_config.quant_method
            self.directory = folder_of(checkpoint_files, method)
            self.saved = _attached(model, self.directory) if method == HF_METHOD else None
            # Missing and unexpected names are errors of our readers, which know those of scales.
            model._keys_to_ignore_on_load_missing = model._keys_to_ignore_on_load_unexpected = {".*"}

        def _process_model_after_weight_loading(self, model: Any, **_: Any) -> None:
            del model._keys_to_ignore_on_load_missing, model._keys_to_ignore_on_load_unexpected
            model._weight_conversions = None  # those of its class hold again, as for a model built in memory
            if self.saved is not None:  # one that was quantized here is no different
                self.remove_quantization_config(model)
            fill_saved(model, self.directory, self.saved)

        def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
            return take_quantizers_off(model, dtype)

    return OctavoQuantizer, OctavoConfig


def _attached(model: Any, directory: Path) -> SavedRecord:
    """Give a model without memory the structure of the modes it was saved with; return their record.

    Packed weights then take theirs, and dense ones none.
    """
    # Views are made anew each time, so their class must say it, or transformers would fill packed weights at random.
    PackedView._is_hf_initialized = True  # type: ignore[attr-defined]
    saved = read_record(directory)
    attach_modes(model, saved)
    return saved


def _allocation() -> Any:
    """Return the operation that makes room for a weight."""
    from transformers.core_model_loading import ConversionOps

    class Allocate(ConversionOps):  # type: ignore[misc]
        """Stands for reading a weight: an empty tensor as the model wants it, where transformers wants it."""

        def convert(
            self, input_dict: Mapping[str, list[Tensor]], full_layer_name: str, model: Any, **_: Any
        ) -> dict[str, Tensor]:
            wanted = model.get_parameter_or_buffer(full_layer_name)
            found = next(iter(input_dict.values()))[0]
            return {full_layer_name: torch.empty_like(wanted, device=found.device)}

    return Allocate()
