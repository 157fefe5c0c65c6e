"""PackedView: a packed weight, looked at as the dense tensor that it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing

from octavo.core.errors import UnsupportedError
from octavo.core.formats import QuantSpec
from octavo.core.packed.packed_chain import PackedChain
from octavo.core.packed.packed_tensor import PackedTensor
from octavo.core.packed.view_sharding import gathered, row_bytes

Arrangement = Literal["plain", "transposed", "flat"]
Handler = Callable[..., Any]
_HANDLERS: dict[str, Handler] = {}
_PARTS = ("payload", "scale", "global_scale", "then_amax", "then_global_amax")


class PackedView(Tensor):
    """A view of packed codes and scales that has shape, dtype and device of the dense tensor.

    Layers store plain tensors; this is what those that look at a layer's weight are shown. It multiplies without
    being dequantized as a whole where a kernel can (`torch.nn.functional.linear`, `mm`, `addmm` with its transpose),
    it is copied, moved, cut and sent as codes and scales, and everything else raises. It has no gradient.

    Attributes:
        payload: As in `PackedTensor`.
        scale: As in `PackedTensor`.
        global_scale: As in `PackedTensor`.
        spec: As in `PackedTensor`.
        packed_shape: Shape of the packed tensor.
        then: The second format of a `PackedChain`, or None.
        then_amax: Its calibrated tensors, or None.
        then_global_amax: As above.
        arrangement: How the dense tensor that is shown lies over the packed one: as it is, transposed (of two dims), or
            as one dim.
    """

    payload: Tensor
    scale: Tensor
    global_scale: Tensor | None
    then_amax: Tensor | None
    then_global_amax: Tensor | None

    @staticmethod
    def __new__(cls, packed: PackedTensor | PackedChain, arrangement: Arrangement = "plain") -> PackedView:
        """Return the view of `packed`, of which nothing is copied, and nothing but shapes and dtypes is looked at."""
        first = packed.first if isinstance(packed, PackedChain) else packed
        size, stride = _arranged(first.shape, arrangement)
        return Tensor._make_wrapper_subclass(
            cls, size, strides=stride, dtype=first.dtype, device=first.payload.device
        )

    def __init__(self, packed: PackedTensor | PackedChain, arrangement: Arrangement = "plain") -> None:
        first = packed.first if isinstance(packed, PackedChain) else packed
        self.payload, self.scale, self.global_scale = first.payload, first.scale, first.global_scale
        self.spec, self.packed_shape, self.arrangement = first.spec, first.shape, arrangement
        self.then: QuantSpec | None = None
        self.then_amax = self.then_global_amax = None
        if isinstance(packed, PackedChain):
            self.then = packed.then
            for name, state in zip(packed.then.state, packed.state, strict=True):
                setattr(self, f"then_{name}", state)

    @property
    def packed(self) -> PackedTensor | PackedChain:
        """Codes, scales and format."""
        parts = self.payload, self.scale, self.global_scale
        first = PackedTensor(*parts, self.spec, self.packed_shape, self.dtype)
        return first if self.then is None else PackedChain(first, self.then, self.then_state)

    @property
    def then_state(self) -> tuple[Tensor, ...]:
        """Calibrated tensors of `then`, in the order of its spec."""
        return () if self.then is None else tuple(getattr(self, f"then_{name}") for name in self.then.state)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the dense tensor, in `dtype` or that of the view.

        Raises:
            UnsupportedError: the codes are on other ranks.
        """
        self.check_present("dequantize")
        values = self.packed.dequantize(dtype)
        if self.arrangement == "transposed":
            return values.t()
        return values.flatten() if self.arrangement == "flat" else values

    def check_present(self, operation: str) -> None:
        """Raise an `UnsupportedError` where a wrapper of the model holds the codes on other ranks."""
        if hasattr(self.payload, "full_tensor"):
            raise UnsupportedError(
                f"{operation} of {self.described()}: FSDP2 has its codes sharded among ranks; call unshard() of "
                "the wrapped module first, and reshard() after"
            )
        if self.payload.numel() == 0 and 0 not in self.packed_shape:
            raise UnsupportedError(
                f"{operation} of {self.described()}: its codes are not here, found a payload of shape "
                f"{tuple(self.payload.shape)}; under ZeRO-3 use "
                "`with deepspeed.zero.GatheredParameters(layer.parameters()):`"
            )

    def described(self) -> str:
        """Return format, shape and dtype, for messages."""
        formats = f"{self.spec}" if self.then is None else f"{self.spec}, then {self.then}"
        return f"a weight {tuple(self.shape)} {self.dtype} packed as {formats}"

    def parts(self) -> dict[str, Tensor]:
        """Return the plain tensors that the view is made of, by name."""
        found = {name: getattr(self, name) for name in _PARTS}
        return {name: part for name, part in found.items() if part is not None}

    def mapped(self, function: Callable[[Tensor], Tensor], **changes: Any) -> PackedView:
        """Return the view of what `function` makes of each part; `changes` are those of `context()`."""
        parts = {name: function(part) for name, part in self.parts().items()}
        return self.rebuilt(parts, {**self.context(), **changes})

    def context(self) -> dict[str, Any]:
        """Return all of the view but its parts: comparable data, from which `rebuilt` makes a view."""
        fields = {"spec": self.spec, "shape": self.packed_shape, "dtype": self.dtype}
        return {**fields, "then": self.then, "arrangement": self.arrangement}

    @classmethod
    def rebuilt(cls, parts: Mapping[str, Tensor], context: Mapping[str, Any]) -> PackedView:
        """Return the view that has these `parts()` and this `context()`."""
        tensors = (parts["payload"], parts["scale"], parts.get("global_scale"))
        first = PackedTensor(*tensors, context["spec"], context["shape"], context["dtype"])
        then: QuantSpec | None = context["then"]
        if then is None:
            return cls(first, context["arrangement"])
        state = tuple(parts[f"then_{name}"] for name in then.state)
        return cls(PackedChain(first, then, state), context["arrangement"])

    def fsdp_pre_all_gather(
        self, mesh: Any, size: Sequence[int], stride: Sequence[int], module: Any, mp_policy: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int]]:
        """Return what FSDP2 gathers along the first dim, and what it hands on to `fsdp_post_all_gather`.

        Raises:
            UnsupportedError: the rows do not divide among the ranks.
        """
        if size[0] % mesh.size():
            raise UnsupportedError(
                f"{self.described()} has some of {size[0]} rows on {mesh.size()} ranks, and FSDP2 gathers only equal "
                "numbers of them; codes and scales that are plain parameters (octavo.compress) are padded"
            )
        return tuple(row_bytes(self).values()), (size[0],)

    def fsdp_post_all_gather(
        self, outputs: Sequence[Tensor], num_rows: tuple[int], dtype: torch.dtype, *, out: Any = None
    ) -> tuple[PackedView, Sequence[Tensor]] | None:
        """Return the whole view and the tensors that FSDP2 frees later; an `out` lies over the same memory."""
        if out is not None:
            return None
        return gathered(self, dict(zip(row_bytes(self), outputs, strict=True)), *num_rows), outputs

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PackedView({self.described()})"

    def __tensor_flatten__(self) -> tuple[list[str], dict[str, Any]]:
        return list(self.parts()), self.context()

    @classmethod
    def __tensor_unflatten__(
        cls, parts: Mapping[str, Tensor], context: Mapping[str, Any], size: Any, stride: Any
    ) -> PackedView:
        return cls.rebuilt(parts, context)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        handler = _HANDLERS.get(str(function))
        result = NotImplemented if handler is None else handler(function, *args, **(kwargs or {}))
        if result is NotImplemented:
            view = next(
                one for one in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(one, cls)
            )
            raise UnsupportedError(
                f"{function} of {view.described()} is not supported; take its `.dequantize()`, or make the "
                "model's weights dense again with octavo.decompress(model); adapters over it are merged by "
                "octavo.merge_adapters(model)"
            )
        return return_and_correct_aliasing(  # type: ignore[no-untyped-call]
            function, args, kwargs or {}, result
        )


def implements(*functions: str) -> Callable[[Handler], Handler]:
    """Register what a `PackedView` does for the operators of these names, which need not exist in every torch.

    The handler is given the function and its arguments, and returns NotImplemented for arguments that it does not
    serve.
    """

    def register(handler: Handler) -> Handler:
        _HANDLERS.update(dict.fromkeys(functions, handler))
        return handler

    return register


def _arranged(shape: tuple[int, ...], arrangement: Arrangement) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the size and the strides of the dense tensor that a view shows."""
    if arrangement == "flat":
        return (math.prod(shape),), (1,)
    strides = tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))
    return (shape, strides) if arrangement == "plain" else (shape[::-1], strides[::-1])
