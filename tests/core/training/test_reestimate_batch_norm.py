"""Batch normalization's statistics, taken anew from a network that rounds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import octavo

BATCHES = [torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) + 1 for seed in range(3)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, momentum=0.3)
        self.drop, self.unused = nn.Dropout(0.5), nn.BatchNorm2d(8, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.bn2(self.conv2(self.drop(torch.relu(self.bn1(self.conv1(x))))))
        return result


def rounded() -> Net:
    config = {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 3, "axis": 0}},
        ],
        "algorithm": "max",
    }
    net = Net()
    octavo.quantize(net, config, quiet=True)
    return net.eval()


def test_statistics_are_those_of_what_the_rounded_layers_make() -> None:
    net = rounded()
    made = [
        nn.functional.conv2d(x.double(), net.conv1.weight_quantizer(net.conv1.weight).double())
        for x in BATCHES
    ]

    assert octavo.reestimate_batch_norm(net, BATCHES, quiet=True) == 2

    mean = torch.stack([y.mean((0, 2, 3)) for y in made]).mean(0)
    variance = torch.stack([y.var((0, 2, 3), unbiased=True) for y in made]).mean(0)
    torch.testing.assert_close(net.bn1.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net.bn1.running_var.double(), variance, rtol=1e-5, atol=1e-6)
    assert net.bn2.momentum == 0.3
    assert int(net.bn2.num_batches_tracked) == 0
    assert not net.training
    assert not net.bn1.training


def test_with_one_batch_the_second_norm_centers_what_it_gets() -> None:
    net = rounded()

    octavo.reestimate_batch_norm(net, BATCHES[:1], quiet=True)

    output = net(BATCHES[0])
    assert output.mean((0, 2, 3)).abs().max() < 0.02, "the first norm's batch variance is the biased one"
    assert (output.var((0, 2, 3)) - 1).abs().max() < 0.05


def test_nothing_changes_where_it_fails() -> None:
    class Halfway(Net):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.bn1(self.conv1(x))
            return result

    for net, data, message in (
        (Halfway(), BATCHES, r"never reached 1 batch norms: bn2"),
        (Net(), [BATCHES[0] * torch.inf], r"statistics of 2 batch norms are not finite: bn1, bn2"),
        (Net(), [], r"ran the model 0 times"),
    ):
        before = {name: value.clone() for name, value in net.state_dict().items()}
        with pytest.raises(octavo.CalibrationError, match=message):
            octavo.reestimate_batch_norm(net, data, quiet=True)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert net.bn1.momentum == 0.1


def test_networks_without_such_norms() -> None:
    with pytest.raises(octavo.ModeError, match=r"no batch normalization with running statistics"):
        octavo.reestimate_batch_norm(nn.Linear(3, 3), [torch.ones(2, 3)])
