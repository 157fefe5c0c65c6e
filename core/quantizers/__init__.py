"""The modules that hold one tensor's format and state."""

from octavo.core.quantizers.bias import Bias
from octavo.core.quantizers.calibrator import MAX, Calibrator
from octavo.core.quantizers.rotation import Rotation
from octavo.core.quantizers.sequential_quantizer import Quantizer, SequentialQuantizer
from octavo.core.quantizers.tensor_quantizer import Collector, TensorQuantizer

__all__ = [
    "MAX",
    "Bias",
    "Calibrator",
    "Collector",
    "Quantizer",
    "Rotation",
    "SequentialQuantizer",
    "TensorQuantizer",
]
