"""Calibration algorithms by name, and the forms in which a config may give them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from octavo.core.errors import ConfigError, UnsupportedError, nearest

if TYPE_CHECKING:
    from octavo.core.calibration.algorithm import Algorithm

# Each is imported when a config asks for it.
ALGORITHMS = {
    "max": "octavo.core.calibration.max:Max",
    "mse": "octavo.core.calibration.mse:Mse",
    "compensate": "octavo.core.calibration.compensate:Compensate",
    "local_hessian": "octavo.core.calibration.local_hessian:LocalHessian",
    "gptq": "octavo.core.calibration.gptq:Gptq",
    "nvfp4_act_headroom": "octavo.core.calibration.nvfp4_act_headroom:Nvfp4ActHeadroom",
    "hqq": "octavo.core.calibration.hqq:Hqq",
    "smoothquant": "octavo.core.calibration.smoothquant:Smoothquant",
    "svdquant": "octavo.core.calibration.svdquant:Svdquant",
    "smooth": "octavo.core.calibration.smooth:Smooth",
    "awq_lite": "octavo.core.calibration.awq_lite:AwqLite",
    "awq_clip": "octavo.core.calibration.awq_clip:AwqClip",
    "awq_full": "octavo.core.calibration.awq_full:AwqFull",
    "learned_rounding": "octavo.core.calibration.learned_rounding:LearnRounding",
}
# Names that configs of the field use and this version cannot run.
_DECLARED = ("lsq",)


def algorithms_of(algorithm: Any) -> list[Algorithm]:
    """Return the algorithms to run in turn for the `algorithm` of a config.

    Args:
        algorithm: None, a name, a dict with `method` and its options, or a list of these.

    Raises:
        ConfigError: the name or an option is unknown, or an option has a wrong value.
        UnsupportedError: the algorithm is known and not available in this version; it is named.
    """
    if algorithm is None:
        return []
    if isinstance(algorithm, (list, tuple)):
        return [found for part in algorithm for found in algorithms_of(part)]
    options = {"method": algorithm} if isinstance(algorithm, str) else algorithm
    if not isinstance(options, Mapping) or "method" not in options:
        raise ConfigError(
            f"algorithm must be a name, a dict with 'method', a list or None; found {algorithm!r}"
        )
    chosen = algorithm_named(options["method"])
    return [_configured(chosen, {key: value for key, value in options.items() if key != "method"})]


def known_algorithms() -> dict[str, str]:
    """Return {method: `module:Class`} of our own algorithms and of those that plugins bring."""
    from octavo.core.plugins import plugins

    return ALGORITHMS | plugins().calibration_algorithms()


def algorithm_named(name: Any) -> type[Algorithm]:
    """Return the class of an algorithm.

    Raises:
        ConfigError: there is none of that name.
        UnsupportedError: it is known and not available in this version.
    """
    known = known_algorithms()
    if name in _DECLARED:
        available = ", ".join(sorted(known))
        raise UnsupportedError(
            f"algorithm {name!r} is not available in this version of Octavo; available: {available}"
        )
    if not isinstance(name, str) or name not in known:
        names = [*known, *_DECLARED]
        raise ConfigError(
            f"unknown algorithm {name!r}; known: {', '.join(names)}.{nearest(str(name), names)}"
        )
    module, _, class_name = known[name].partition(":")
    return cast("type[Algorithm]", getattr(import_module(module), class_name))


def _configured(algorithm: type[Algorithm], options: Mapping[str, Any]) -> Algorithm:
    from pydantic import ValidationError

    known = list(algorithm.model_fields)
    unknown = sorted(set(options) - set(known))
    if unknown:
        hint = nearest(unknown[0], known)
        raise ConfigError(
            f"algorithm {algorithm.method!r} takes the options {', '.join(known) or 'none'}, found "
            f"{', '.join(unknown)}" + (f".{hint}" if hint else "")
        )
    try:
        return algorithm(**options)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(str(part) for part in problem["loc"])
        found = f"{name}={problem['input']!r}: " if name else ""
        raise ConfigError(f"algorithm {algorithm.method!r}: {found}{problem['msg']}") from error
