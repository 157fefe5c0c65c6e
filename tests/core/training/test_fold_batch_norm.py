"""Normalization folded into the layers before it: the same outputs, and of quantized layers the same codes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo


class Net(nn.Module):
    """A convolution, a shortcut around a second one, and a linear layer; each normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, affine=False)
        self.conv3, self.bn3 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.fc, self.bn4 = nn.Linear(8, 5), nn.BatchNorm1d(5)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(image)))
        x = torch.relu(x + self.bn2(self.conv2(x)))
        made = self.conv3(x)
        x = self.bn3(made) + made  # not only the normalization reads it
        return self.bn4(self.fc(x.mean((2, 3))))


IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(3))
FOLDED = {"conv1": "bn1", "conv2": "bn2", "fc": "bn4"}


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                module.weight.data.normal_()  # of either sign
                module.bias.data.normal_()
    return model.eval()


def with_weights(**cfg: Any) -> dict[str, Any]:
    rules = [{"quantizer_name": "*", "enable": False}, {"quantizer_name": "*weight_quantizer", "cfg": cfg}]
    return {"quant_cfg": rules, "algorithm": "max"}


@pytest.mark.parametrize("inputs", [IMAGES, {"image": IMAGES}])
def test_a_plain_model_computes_the_same(net: nn.Module, inputs: Any) -> None:
    expected = net(IMAGES)

    assert octavo.fold_batch_norm(net, inputs) == FOLDED

    torch.testing.assert_close(net(IMAGES), expected, rtol=1e-5, atol=1e-5)
    assert isinstance(net.bn1, nn.Identity)
    assert isinstance(net.bn3, nn.BatchNorm2d)
    assert not net.training


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_layers_keep_their_codes(net: nn.Module, bits: int) -> None:
    octavo.quantize(net, with_weights(num_bits=bits, axis=0), quiet=True)
    before, expected = copy.deepcopy(net), net(IMAGES)

    octavo.fold_batch_norm(net, IMAGES)

    for name, norm in FOLDED.items():
        ours, theirs = (codes(model.get_submodule(name)) for model in (net, before))
        gamma = before.get_submodule(norm).weight
        sign = torch.ones(len(ours)) if gamma is None else gamma.sign()
        assert torch.equal(ours, theirs * sign.reshape(-1, *[1] * (ours.dim() - 1)))
    torch.testing.assert_close(net(IMAGES), expected, rtol=1e-4, atol=1e-4)


def codes(layer: Any) -> Tensor:
    quantizer = layer.weight_quantizer
    largest = quantizer.spec.element_type.max
    amax = quantizer.amax.reshape(-1, *[1] * (layer.weight.dim() - 1))
    return torch.round(layer.weight_quantizer(layer.weight) * largest / amax)


@pytest.mark.parametrize(
    ("cfg", "found"),
    [({"num_bits": 8, "axis": None}, "int8 tensor"), ({"num_bits": 8, "axis": 1}, "int8 channel1")],
)
def test_other_scales_do_not_fit(net: nn.Module, cfg: dict[str, Any], found: str) -> None:
    octavo.quantize(net, with_weights(**cfg), quiet=True)
    before = copy.deepcopy(net.state_dict())

    with pytest.raises(
        octavo.UnsupportedError,
        match=f"bn1 cannot be folded into conv1: its weight's scales are {found}, expected",
    ):
        octavo.fold_batch_norm(net, IMAGES)

    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_quantizer_between(net: nn.Module) -> None:
    config = with_weights(num_bits=8, axis=0)
    config["quant_cfg"].append({"quantizer_name": "fc.output_quantizer", "cfg": {"num_bits": 8}})
    octavo.quantize(net, config, [IMAGES], quiet=True)

    with pytest.raises(
        octavo.UnsupportedError, match=r"bn4 cannot be folded into fc: its output_quantizer rounds"
    ):
        octavo.fold_batch_norm(net, IMAGES)

    assert isinstance(net.bn1, nn.BatchNorm2d)


def test_not_calibrated(net: nn.Module) -> None:
    octavo.quantize(net, with_weights(num_bits=8, axis=0), quiet=True)
    octavo.set_quantizer_by_cfg(net, {"conv1.weight_quantizer": {"num_bits": 4}}, quiet=True)

    with pytest.raises(
        octavo.ModeError, match=r"conv1\.weight_quantizer was never calibrated; run octavo\.calibrate"
    ):
        octavo.fold_batch_norm(net, IMAGES)
