"""Schemas of the `octavo` operators: what a kernel for a device implements.

`spec` is a string made by `formats.chain_key`: the specs to apply in turn, as JSON. A `state` list holds the
calibrated tensors of those specs, in the order of each `QuantSpec.state`. Operators never alias their inputs
and return contiguous tensors, so that compilers may treat them as opaque. Autocast does not reach inside: the dtype
of a product is an argument, so that a traced graph computes what the traced code did.
"""

from __future__ import annotations

import torch

LIBRARY = torch.library.Library("octavo", "DEF")  # type: ignore[no-untyped-call]

SCHEMAS = (
    # Largest magnitude of each block, fp32.
    "amax(Tensor x, str spec) -> Tensor",
    # Round to the values that codes and scales stand for; gradients pass straight through, with range_mask
    # only where the value does not saturate.
    "fake_quantize(Tensor x, Tensor[] state, str spec, bool range_mask) -> Tensor",
    "fake_quantize_backward(Tensor grad, Tensor x, Tensor[] state, str spec) -> Tensor",
    # The gradients of the state of the same, in its order (see formats.state_gradients).
    "fake_quantize_state_backward(Tensor grad, Tensor x, Tensor[] state, str spec) -> Tensor[]",
    # fake_quantize(hadamard_transform(x, block)); the gradient is rotated back.
    "rotated_fake_quantize(Tensor x, int block, Tensor[] state, str spec, bool range_mask) -> Tensor",
    # linear(fake_quantize(x), fake_quantize(weight), bias) that saves x and weight for backward, not their
    # quantized copies. The three operands are cast to dtype, if given, just before the product.
    "fake_quantized_linear(Tensor x, Tensor weight, Tensor? bias, Tensor[] x_state, str x_spec, "
    "Tensor[] weight_state, str weight_spec, bool x_range_mask, bool weight_range_mask, "
    "ScalarType? dtype) -> Tensor",
    # [packed payload, stored scale] or [packed payload, stored scale, global scale].
    "quantize(Tensor x, Tensor[] state, str spec) -> Tensor[]",
    "dequantize(Tensor payload, Tensor scale, Tensor? global_scale, str spec, SymInt[] shape, "
    "ScalarType dtype) -> Tensor",
    # [2, ..., runs], float64: sums of squares of x and of dequantize(payload, …) - x for runs of its columns, in the
    # order of formats.squared_error.
    "squared_error(Tensor x, Tensor payload, Tensor scale, Tensor? global_scale, str spec) -> Tensor",
    # linear(fake_quantize(x), weight, bias) with weight = fake_quantize(dequantize(payload, …), then_spec), of
    # weight_dtype and shape [payload.shape[0], x.shape[-1]]; gradients reach x and bias.
    "packed_linear(Tensor x, Tensor? bias, Tensor[] x_state, str x_spec, Tensor payload, Tensor scale, "
    "Tensor? global_scale, str weight_spec, Tensor[] then_state, str then_spec, ScalarType weight_dtype, "
    "bool x_range_mask, ScalarType? dtype) -> Tensor",
    # The same for rows x [rows, in] of which each has a weight of its own among stacked ones [experts, out, in].
    "packed_expert_linear(Tensor x, Tensor expert, Tensor? bias, Tensor payload, Tensor scale, "
    "Tensor? global_scale, str weight_spec, Tensor[] then_state, str then_spec, ScalarType weight_dtype, "
    "ScalarType? dtype) -> Tensor",
    # Its gradient to x, of grad's dtype: grad[i] @ weight[expert[i]], with in_features columns.
    "packed_expert_linear_backward(Tensor grad, Tensor expert, Tensor payload, Tensor scale, "
    "Tensor? global_scale, str weight_spec, Tensor[] then_state, str then_spec, ScalarType weight_dtype, "
    "SymInt in_features) -> Tensor",
)

for _schema in SCHEMAS:
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
