"""FSDP2 swaps classes too: both swaps compose, in either order, with the real library."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._composable.replicate_with_fsdp import ReplicateModule, replicate
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

import octavo
from helpers.modules_layers import W8A8, TwoLayers, normal, quantizers_for, swap_in
from octavo.core.modules import QuantModule, quantized_class, swap, unswap

X = normal(4, 32)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceMesh]:
    """One process of gloo: gathering and scattering run, over a group of one."""
    file = tmp_path_factory.mktemp("gloo") / "store"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def shard(model: Any, mesh: DeviceMesh, **options: Any) -> Any:
    for layer in (model.up, model.down):
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def quantized() -> Any:
    return octavo.quantize(TwoLayers(), W8A8, [X], quiet=True)


def swap_both(model: Any) -> None:
    """Swap the layers of a sharded model, with the quantizers of the same model quantized unsharded."""
    source = quantized()
    for name in ("up", "down"):
        layer = getattr(model, name)
        cls = quantized_class(type(layer))
        assert cls is not None
        made = {n: copy.deepcopy(q) for n, q in getattr(source, name).quantizers().items()}
        swap(name, layer, cls, made)


def output_and_gradients(model: Any) -> list[Tensor]:
    model.zero_grad()
    output = model(X)
    output.square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    return [output, *(g.full_tensor() if hasattr(g, "full_tensor") else g for g in gradients)]


def test_quantize_then_shard(mesh: DeviceMesh) -> None:
    model = shard(quantized(), mesh)

    assert isinstance(model.up, FSDPModule)
    assert isinstance(model.up, QuantModule)
    assert all(map(torch.equal, output_and_gradients(model), output_and_gradients(quantized())))
    assert model.state_dict().keys() == quantized().state_dict().keys()


def test_quantize_then_shard_then_unquantize(mesh: DeviceMesh) -> None:
    model = octavo.unquantize(shard(quantized(), mesh))

    assert type(model.up).__name__ == "FSDPLinear"
    assert type(model.up).__mro__[1:] == (FSDPModule, *nn.Linear.__mro__)
    assert all(map(torch.equal, output_and_gradients(model), output_and_gradients(TwoLayers())))
    model.up.unshard()
    assert type(model.up.weight) is nn.Parameter
    model.up.reshard()


def test_swap_a_sharded_layer(mesh: DeviceMesh) -> None:
    model = shard(TwoLayers(), mesh)
    before, weight = type(model.up), model.up.weight
    swap_both(model)

    assert isinstance(model.up, FSDPModule)
    assert isinstance(model.up, QuantModule)
    assert type(model.up).__name__ == "FSDPQuantLinear"
    assert type(model.up) is type(model.down)
    assert model.up.weight is weight
    assert all(map(torch.equal, output_and_gradients(model), output_and_gradients(quantized())))
    for name in ("up", "down"):
        unswap(name, getattr(model, name))
    assert type(model.up) is before
    assert all(map(torch.equal, output_and_gradients(model), output_and_gradients(TwoLayers())))


def test_a_sharded_subclass_is_judged_by_its_own_class(mesh: DeviceMesh) -> None:
    class Named(nn.Linear):
        pass

    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    named, doubled = fully_shard(Named(8, 8), mesh=mesh), fully_shard(Doubled(8, 8), mesh=mesh)

    assert quantized_class(type(named)) is quantized_class(Named)
    assert quantized_class(type(doubled)) is None
    with torch.no_grad():
        made = quantizers_for(Named(8, 8))
    swap_in(named, made)
    assert isinstance(named, FSDPModule)
    assert isinstance(named, Named)
    unswap("layer", named)
    assert type(named).__name__ == "FSDPNamed"


def test_mixed_precision_leaves_the_scales(mesh: DeviceMesh) -> None:
    model = shard(quantized(), mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    output = model(X)

    assert output.dtype == torch.bfloat16
    assert model.up.input_quantizer.amax.dtype == torch.float32
    assert torch.equal(output, quantized().bfloat16()(X.bfloat16()))


@pytest.mark.parametrize("swapped", [True, False])
def test_copying_is_refused_as_fsdp_refuses_it(mesh: DeviceMesh, swapped: bool) -> None:
    layer: Any
    if swapped:
        layer = nn.Linear(8, 8)
        made = quantizers_for(layer)
        layer = swap_in(fully_shard(layer, mesh=mesh), made)
    else:
        layer = fully_shard(swap_in(nn.Linear(8, 8)), mesh=mesh)
        unswap("layer", layer)
    with pytest.raises(AssertionError, match="FSDP does not support deepcopy"):
        copy.deepcopy(layer)


def test_a_replicated_layer_stays_replicated(mesh: DeviceMesh) -> None:
    layer = replicate(swap_in(nn.Linear(8, 8)), mesh=mesh)
    assert isinstance(layer, ReplicateModule)
    unswap("layer", layer)

    assert isinstance(layer, ReplicateModule)


def test_a_layer_replicated_first_comes_back_replicated(mesh: DeviceMesh) -> None:
    layer = nn.Linear(32, 32)
    made, expected = quantizers_for(layer), swap_in(copy.deepcopy(layer))(X)
    replicate(layer, mesh=mesh)
    before = type(layer)
    swap_in(layer, made)

    assert isinstance(layer, ReplicateModule)
    assert torch.equal(layer(X), expected)
    unswap("layer", layer)
    assert type(layer) is before


def test_quantizing_a_sharded_model_is_quantizing_before(mesh: DeviceMesh) -> None:
    late = octavo.quantize(shard(TwoLayers(), mesh), W8A8, [X], quiet=True)
    early = shard(octavo.quantize(TwoLayers(), W8A8, [X], quiet=True), mesh)

    for model in (late, early):
        assert [type(layer).__name__ for layer in (model.up, model.down)] == ["FSDPQuantLinear"] * 2
    assert all(map(torch.equal, output_and_gradients(late), output_and_gradients(early)))


def test_what_needs_whole_weights_is_refused_with_the_order_to_use(mesh: DeviceMesh) -> None:
    model = shard(TwoLayers(), mesh)
    with pytest.raises(
        octavo.UnsupportedError,
        match=r"'gptq' needs whole weights, and 4 parameters are sharded \(first 'up\.weight'\); do this before",
    ):
        octavo.quantize(model, {**W8A8, "algorithm": "gptq"}, [X], quiet=True)


def test_a_failed_quantize_leaves_a_sharded_model(mesh: DeviceMesh) -> None:
    model = shard(TwoLayers(), mesh)
    before = type(model.up), type(model.down)
    with pytest.raises(octavo.CalibrationError, match="no forward_loop"):
        octavo.quantize(model, W8A8, quiet=True)

    assert (type(model.up), type(model.down)) == before
    assert all(map(torch.equal, output_and_gradients(model), output_and_gradients(TwoLayers())))
