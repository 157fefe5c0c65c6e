"""Calibration algorithms by name, and the forms in which a config may give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

from torch import nn

from octavo.core.calibration.forward_loop import ForwardLoop
from octavo.core.errors import ConfigError, UnsupportedError, nearest

Algorithm = Callable[[nn.Module, "ForwardLoop | None", bool], None]

# Module, function and the dataclass of its options, which the function takes as `options`; imported when asked for.
ALGORITHMS = {
    "max": ("octavo.core.calibration.max", "calibrate_max", "MaxOptions"),
    "mse": ("octavo.core.calibration.mse", "calibrate_mse", "MseOptions"),
}
# Names that configs of the field use and this version cannot run.
_DECLARED = (
    "local_hessian", "smoothquant", "awq_lite", "awq_clip", "awq_full", "svdquant", "gptq", "nvfp4_act_headroom", "lsq",
)  # fmt: skip


def algorithms_of(algorithm: Any) -> list[Algorithm]:
    """Return the functions to run in turn for the `algorithm` of a config.

    Args:
        algorithm: None, a name, a dict with `method` and its options, or a list of these.

    Raises:
        ConfigError: the name or an option is unknown.
        UnsupportedError: the algorithm is known and not available in this version; it is named.
    """
    if algorithm is None:
        return []
    if isinstance(algorithm, (list, tuple)):
        return [function for part in algorithm for function in algorithms_of(part)]
    options = {"method": algorithm} if isinstance(algorithm, str) else algorithm
    if not isinstance(options, Mapping) or "method" not in options:
        raise ConfigError(
            f"algorithm must be a name, a dict with 'method', a list or None; found {algorithm!r}"
        )
    name = options["method"]
    if name in _DECLARED:
        available = ", ".join(sorted(ALGORITHMS))
        raise UnsupportedError(
            f"algorithm {name!r} is not available in this version of Octavo; available: {available}"
        )
    if not isinstance(name, str) or name not in ALGORITHMS:
        known = [*ALGORITHMS, *_DECLARED]
        raise ConfigError(
            f"unknown algorithm {name!r}; known: {', '.join(known)}.{nearest(str(name), known)}"
        )
    return [_configured(name, {key: value for key, value in options.items() if key != "method"})]


def _configured(name: str, options: Mapping[str, Any]) -> Algorithm:
    module_name, function_name, options_name = ALGORITHMS[name]
    module = import_module(module_name)
    function, options_class = getattr(module, function_name), getattr(module, options_name)
    known = list(options_class.__dataclass_fields__)
    unknown = sorted(set(options) - set(known))
    if unknown:
        hint = nearest(unknown[0], known)
        raise ConfigError(
            f"algorithm {name!r} takes the options {', '.join(known)}, found {', '.join(unknown)}"
            + (f".{hint}" if hint else "")
        )
    return partial(function, options=options_class(**options))
