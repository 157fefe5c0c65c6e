"""Products with a `PackedView`: of its transpose by `packed_linear`, and of itself, as gradients need it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from octavo.core import ops
from octavo.core.formats import Quantized, chain_key
from octavo.core.packed.packed_chain import PackedChain
from octavo.core.packed.packed_view import PackedView, implements


@implements("aten.linear.default")
def _linear(function: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    if not isinstance(weight, PackedView) or weight.arrangement != "plain":
        return NotImplemented
    return _product(function, x, weight, bias)


@implements("aten.mm.default")
def _mm(function: Any, x: Tensor, weight: Tensor) -> Any:
    if isinstance(x, PackedView) or not isinstance(weight, PackedView):
        return NotImplemented
    if weight.arrangement == "transposed":
        return _product(function, x, weight, None)
    return x @ weight.dequantize().to(x.dtype)


@implements("aten.addmm.default")
def _addmm(
    function: Any, bias: Tensor, x: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1
) -> Any:
    if isinstance(x, PackedView) or isinstance(bias, PackedView) or not isinstance(weight, PackedView):
        return NotImplemented
    if bias.dim() != 1 or (beta, alpha) != (1, 1) or weight.arrangement != "transposed":
        return NotImplemented
    return _product(function, x, weight, bias)


def _product(function: Any, x: Tensor, weight: PackedView, bias: Tensor | None) -> Any:
    weight.check_present(str(function))
    packed = weight.packed
    first = packed.first if isinstance(packed, PackedChain) else packed
    then = chain_key([] if weight.then is None else [weight.then])
    codes = Quantized(first.payload, first.scale, first.global_scale)
    return ops.packed_linear(
        x, bias, codes, first.spec, first.dtype, then_state=weight.then_state, then_spec=then
    )
