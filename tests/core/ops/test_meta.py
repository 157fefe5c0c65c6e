"""Meta tensors: the same shapes, dtypes and strides as real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.ops_cases import E4M3, E4M3_SQUARE, INT8, MXFP4, NOTHING, SPECS, normal, state_of
from octavo.core import ops
from octavo.core.formats import PerChannel, QuantSpec, chain_key

LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "matrix": lambda: normal(32, 64),
    "transposed": lambda: normal(64, 32).t(),
    "three_dims": lambda: normal(2, 3, 64),
    "permuted": lambda: normal(64, 2, 3).permute(1, 2, 0),
    "strided": lambda: normal(2, 3, 128)[..., ::2],
    "odd": lambda: normal(3, 37),
    "vector": lambda: normal(64),
    "empty": lambda: normal(0, 64),
    "empty_rows": lambda: normal(4, 0),
}


def to_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta")
    return [to_meta(part) for part in value] if isinstance(value, list) else value


def looks(result: Tensor | list[Tensor]) -> list[Any]:
    """Return dtype, shape and strides; those of an empty tensor mean nothing."""
    parts = [result] if isinstance(result, Tensor) else result
    return [(part.dtype, part.shape, part.stride() if part.numel() else None) for part in parts]


def assert_same(op: Any, *arguments: Any) -> None:
    found = op(*to_meta(list(arguments)))
    assert looks(found) == looks(op(*arguments))
    for part in [found] if isinstance(found, Tensor) else found:
        assert part.is_meta
        assert part.is_contiguous()


# Blocks of two dims need two dims.
CASES = [(spec, layout) for spec in SPECS for layout in LAYOUTS if (spec, layout) != (E4M3_SQUARE, "vector")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("spec", "layout"), CASES, ids=str)
def test_every_operator_over_layouts(spec: QuantSpec, layout: str, dtype: torch.dtype) -> None:
    x = LAYOUTS[layout]().to(dtype)
    state = [torch.ones(spec.state_shape(name, x.shape)) for name in spec.state]

    assert_same(torch.ops.octavo.amax, x, spec.key)
    assert_same(torch.ops.octavo.fake_quantize, x, state, spec.key, True)
    assert_same(torch.ops.octavo.fake_quantize_backward, torch.ones_like(x), x, state, spec.key)
    assert_same(torch.ops.octavo.quantize, x, state, spec.key)
    payload, scale, *rest = torch.ops.octavo.quantize(x, state, spec.key)
    global_scale = rest[0] if rest else None
    assert_same(torch.ops.octavo.dequantize, payload, scale, global_scale, spec.key, list(x.shape), dtype)
    assert_same(torch.ops.octavo.squared_error, x, payload, scale, global_scale, spec.key)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("x_key", [E4M3.key, MXFP4.key, NOTHING])
@pytest.mark.parametrize(
    "layout", ["matrix", "transposed", "three_dims", "permuted", "strided", "vector", "empty"]
)
def test_linear_over_layouts(layout: str, x_key: str, bias: bool) -> None:
    x, weight = LAYOUTS[layout](), normal(16, 64, seed=1)
    spec = QuantSpec("int8", PerChannel(0))
    assert_same(
        torch.ops.octavo.fake_quantized_linear,
        *(x, weight, normal(16) if bias else None),
        *([torch.tensor(1.0)] if x_key == E4M3.key else [], x_key),
        *(state_of(weight, spec), spec.key, True, True, None),
    )


def test_chains_keep_shape_and_dtype() -> None:
    x = normal(4, 64, dtype=torch.float16)
    specs = [MXFP4, INT8]
    assert_same(torch.ops.octavo.fake_quantize, x, state_of(x, *specs), chain_key(specs), False)


@pytest.mark.parametrize("name", ["fake_quantize", "fake_quantized_linear"])
def test_state_without_values_is_an_error_and_not_silence(name: str) -> None:
    x, state = normal(4, 64), [torch.ones((), device="meta")]
    arguments = {
        "fake_quantize": (x, state, INT8.key),
        "fake_quantized_linear": (x, normal(8, 64), None, state, INT8.key, state, INT8.key),
    }
    with pytest.raises((RuntimeError, NotImplementedError, ValueError), match="meta"):
        getattr(ops, name)(*arguments[name])
