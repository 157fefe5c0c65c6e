"""Plan: what quantizing a model would do to each of its tensors, and what stands in the way."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from octavo.core.calibration.statistics.sizes import InputSize, summarize
from octavo.core.config.presets import Config
from octavo.core.errors import PlanError
from octavo.core.formats import QuantSpec
from octavo.core.graph.groups import Groups
from octavo.core.plan.settings import LayerSetting


@dataclass(frozen=True)
class TensorPlan:
    """One parameter of the model.

    Attributes:
        name: Its name.
        shape: Its shape.
        dtype: Its dtype, as `bfloat16`.
        weight: Formats that it goes through, in turn; empty when it is left out.
        inputs: Formats of its layer's input, where it is a layer's weight; empty when that is not quantized.
        reason: Why it is left out, or empty.
        bytes_before: Bytes it takes now.
        bytes_after: Bytes that codes and scales, or the tensor left as it is, will take.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    weight: tuple[QuantSpec, ...]
    inputs: tuple[QuantSpec, ...]
    reason: str
    bytes_before: int
    bytes_after: int

    @property
    def num_values(self) -> int:
        """Number of values."""
        count = 1
        for length in self.shape:
            count *= length
        return count


@dataclass(frozen=True)
class Plan:
    """What quantizing would do. Nothing is changed by making one.

    Attributes:
        config: The config, as it was read.
        tensors: Every parameter of the model, tied ones once.
        layers: Every layer that can be quantized, with its quantizers.
        groups: Layers that read the same tensor, so that their scales can be shared.
        errors: What makes `quantize` refuse.
        warnings: What it would go ahead with, and the user should know.
        exporter: The exporter whose checkpoints the target loads, or None without a target or when it refuses.
        statistics: Bytes of what the algorithm gathers of each distinct input.
        stats_budget: Bytes of these that may be in memory at once; None is no limit.
    """

    config: Config
    tensors: tuple[TensorPlan, ...]
    layers: tuple[LayerSetting, ...]
    groups: Groups
    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    exporter: str | None = None
    statistics: tuple[InputSize, ...] = ()
    stats_budget: int | None = None

    @property
    def coverage(self) -> float:
        """Share of the model's parameters that are quantized, 0 to 1."""
        total = sum(tensor.num_values for tensor in self.tensors)
        return sum(tensor.num_values for tensor in self.tensors if tensor.weight) / max(total, 1)

    @property
    def bytes_before(self) -> int:
        """Bytes of all parameters now."""
        return sum(tensor.bytes_before for tensor in self.tensors)

    @property
    def bytes_after(self) -> int:
        """Bytes of all parameters in the formats of the plan."""
        return sum(tensor.bytes_after for tensor in self.tensors)

    def other_quantizers(self) -> dict[str, tuple[QuantSpec, ...]]:
        """Return the formats of quantizers that are on and belong to no quantized weight's row in the plan.

        Layer outputs, inputs of layers without a weight to quantize, queries, keys and values, by the quantizer's
        full name.
        """
        return {
            layer.site.quantizer_name(quantizer): tuple(stage.spec for stage in stages)
            for layer in self.layers
            for quantizer, stages in layer.quantizers.items()
            if not any(quantizer in (s.quantizer, s.inputs) for s in layer.site.quantized.weight_slots())
        }

    def transforms(self) -> dict[str, str]:
        """Return what quantizers do beside rounding (rotate, subtract a bias), by the quantizer's full name."""
        return {
            layer.site.quantizer_name(quantizer): transform
            for layer in self.layers
            for quantizer, transform in layer.transforms().items()
        }

    def check(self) -> None:
        """Refuse a plan that cannot work.

        Raises:
            PlanError: there are errors; all of them are listed.
        """
        if self.errors:
            shown = "\n  ".join(self.errors)
            raise PlanError(f"the plan has {len(self.errors)} problem(s); nothing was changed:\n  {shown}")

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data."""
        return {
            "version": 1,
            "coverage": self.coverage,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "tensors": [
                {
                    "name": tensor.name,
                    "shape": list(tensor.shape),
                    "dtype": tensor.dtype,
                    "weight": [spec.to_json() for spec in tensor.weight],
                    "inputs": [spec.to_json() for spec in tensor.inputs],
                    "reason": tensor.reason,
                    "bytes_before": tensor.bytes_before,
                    "bytes_after": tensor.bytes_after,
                }
                for tensor in self.tensors
            ],
            "other_quantizers": {
                name: [spec.to_json() for spec in specs] for name, specs in self.other_quantizers().items()
            },
            "transforms": self.transforms(),
            "groups": [list(group) for group in self.groups],
            "exporter": self.exporter,
            "statistics": {
                "bytes": sum(size.total for size in self.statistics),
                "budget": self.stats_budget,
                "inputs": [asdict(size) for size in self.statistics],
            },
            "errors": list(self.errors),
            "warnings": list(self.warnings),
        }

    def summary(self) -> str:
        """Return a few lines: coverage, sizes, what is left out and why, warnings and errors."""
        quantized = [tensor for tensor in self.tensors if tensor.weight]
        lines = [
            f"{len(quantized)} weights quantized, {self.coverage:.1%} of all parameters; "
            f"{_megabytes(self.bytes_before)} -> {_megabytes(self.bytes_after)}"
        ]
        formats: Counter[str] = Counter()
        for tensor in self.tensors:
            parts = {"weights": tensor.weight, "inputs": tensor.inputs}
            kind = ", ".join(f"{part} {_chain(specs)}" for part, specs in parts.items() if specs)
            formats.update([kind] if kind else [])
        for name, specs in self.other_quantizers().items():
            formats[f"{name.rpartition('.')[2]} {_chain(specs)}"] += 1
        for name, transform in self.transforms().items():
            formats[f"{name.rpartition('.')[2]} {transform}"] += 1
        lines += [f"  {count} x {name}" for name, count in formats.items()]
        left_out: dict[str, list[str]] = {}
        for tensor in self.tensors:
            if not tensor.weight and len(tensor.shape) > 1:
                left_out.setdefault(tensor.reason, []).append(tensor.name)
        lines += [f"  left out: {_few(names)} ({reason})" for reason, names in left_out.items()]
        if self.statistics:
            lines.append(f"  {summarize(self.statistics, self.stats_budget)}")
        lines += [f"  warning: {text}" for text in self.warnings]
        lines += [f"  error: {text}" for text in self.errors]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.summary()


def _chain(specs: tuple[QuantSpec, ...]) -> str:
    return " then ".join(map(str, specs))


def _few(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} … {names[-1]}, {len(names)} in all"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.2f} MB"
