"""Kernels compiled for a device that need not be there, as a call with such a tensor compiles them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from octavo.core.formats import QuantSpec
from octavo.kernels.triton.geometry import View
from octavo.kernels.triton.launch import default_geometry, tile_of
from octavo.kernels.triton.number_format import number_format

TILE = 1024  # compiles faster than the default
_DTYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.uint8: "*u8",
    torch.int32: "*i32",
}
_INSTRUCTION = re.compile(r"^\s*(?:@!?%p\d+ )?([a-z][a-z0-9_]*\.[a-z0-9_.:]+)", re.MULTILINE)


class Compiled:
    """What the compiler made: `instructions`, those of the PTX, and `cubin`, the machine code."""

    def __init__(self, kernel: Any) -> None:
        self.instructions = set(_INSTRUCTION.findall(kernel.asm["ptx"]))
        self.cubin = kernel.asm["cubin"]

    def of(self, start: str) -> set[str]:
        """Return the instructions whose names start so."""
        return {name for name in self.instructions if name.startswith(start)}


def compiled(
    kernel: Any,
    tensors: Sequence[torch.dtype | None],
    spec: QuantSpec,
    capability: int,
    shape: tuple[int, ...] = (4096, 4096),
    whole: bool = False,
    bits: int | None = None,
    wide: bool = False,
    rotation: int = 1,
) -> Compiled:
    """Compile `kernel` with pointers to `tensors` for a matrix of `shape`; arguments as in `launch.start`."""
    from dataclasses import replace

    cut = default_geometry(spec, shape, whole)
    assert cut is not None
    constants: dict[str, Any] = {"TILE": replace(tile_of(cut, TILE, bits), is_wide=wide)}
    if "FORMAT" in kernel.arg_names:
        constants["FORMAT"] = number_format(spec)
    if bits is not None:
        constants["BITS"] = bits
    if "LENGTH" in kernel.arg_names:
        constants |= {"LENGTH": rotation, "STEPS": rotation.bit_length() - 1}
    return Compiled(_compile(kernel, tensors, constants, capability))


def _compile(
    kernel: Any, tensors: Sequence[torch.dtype | None], constants: Mapping[str, Any], capability: int
) -> Any:
    names = kernel.arg_names
    pointers = dict(zip(names, tensors, strict=False))
    signature: dict[str, Any] = dict.fromkeys(constants, "constexpr")
    signature |= {name: "constexpr" if t is None else _DTYPES[t] for name, t in pointers.items()}
    signature["view"] = View(*["i32"] * len(View._fields))
    fixed = {**constants, **{name: None for name, t in pointers.items() if t is None}}
    divisible = [[name] for name, t in pointers.items() if t is not None]
    places = [(names.index(name),) for (name,) in divisible]
    places += [(names.index("view"), View._fields.index(field)) for field in ("rows", "cols", "row_bytes")]
    source = ASTSource(
        kernel,
        {name: signature[name] for name in names},
        constexprs=fixed,
        attrs={place: [["tt.divisibility", 16]] for place in places},
    )
    options = {"num_warps": 4, "enable_fp_fusion": False}
    return compile_kernel(source, target=GPUTarget("cuda", capability, 32), options=options)
