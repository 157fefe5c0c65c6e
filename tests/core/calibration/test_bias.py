"""Biases of keys and values: what calibration finds, and that they live as long as the quantizers do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import octavo
from helpers.adapters_models import logits, tiny_model, tokens
from helpers.calibration_snapshot import same_bits, state_bytes
from octavo.core.calibration.bias_collector import BiasCollector
from octavo.core.calibration.collectors import AmaxCollector
from octavo.core.errors import CalibrationError, ConfigError
from octavo.core.formats import QuantSpec
from octavo.core.quantizers import Bias, TensorQuantizer

AFFINE = {**octavo.FP8_AFFINE_KV_CFG, "algorithm": "max"}
ROTATED = octavo.NVFP4_KV_ROTATE_CFG
LAYER = "model.layers.0.self_attn"


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, length, 8, generator=generator) + length for length in (5, 9, 2)]


def collected(method: str) -> tuple[BiasCollector, AmaxCollector]:
    inner = AmaxCollector(QuantSpec("int8"))
    collector = BiasCollector(Bias((-4, -2), method), inner)
    for x in [batches()[0], torch.empty(0, 3, 0, 8), *batches()[1:]]:
        collector.collect(TensorQuantizer(), x)
    return collector, inner


@pytest.mark.parametrize("method", ["mean", "max_min"])
def test_every_batch_is_centred_by_what_was_seen_up_to_it(method: str) -> None:
    seen, amax = [x.double().numpy() for x in batches()], 0.0
    for number, x in enumerate(seen, 1):
        means = [y.mean((0, 2), keepdims=True) for y in seen[:number]]
        low = np.min([y.min((0, 2), keepdims=True) for y in seen[:number]], axis=0)
        high = np.max([y.max((0, 2), keepdims=True) for y in seen[:number]], axis=0)
        bias = np.mean(means, axis=0) if method == "mean" else (low + high) / 2
        amax = max(amax, float(np.abs(x - bias).max()))

    collector, inner = collected(method)

    assert collector.value is not None
    np.testing.assert_allclose(collector.value.numpy(), bias, rtol=1e-6)
    assert inner.amax is not None
    np.testing.assert_allclose(float(inner.amax), amax, rtol=1e-6)


def test_calibration_finds_the_mean_of_each_channel_of_each_head() -> None:
    model = tiny_model("llama")
    values: list[Tensor] = []
    model.get_submodule(f"{LAYER}.v_proj").register_forward_hook(lambda _, __, out: values.append(out))
    octavo.quantize(model, AFFINE, [tokens()], quiet=True)
    quantizer: Any = model.get_submodule(f"{LAYER}.v_bmm_quantizer")

    heads = values[-1].detach().view(2, 12, 2, 16).transpose(1, 2)
    exact = heads.double().mean((0, 2), keepdim=True).float()
    torch.testing.assert_close(quantizer.bias_value, exact, rtol=1e-6, atol=1e-7)
    assert quantizer.amax == (heads - quantizer.bias_value).abs().max()


def test_a_bias_lowers_the_error_of_values_that_are_off_centre() -> None:
    plain = tiny_model("qwen2")  # its projections have biases
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if name.endswith("v_proj.bias"):
                parameter.copy_(torch.linspace(-8, 8, parameter.numel()))
    exact, errors = logits(plain), []
    for preset in ("NVFP4_KV_CFG", "NVFP4_AFFINE_KV_CFG"):
        model = tiny_model("qwen2")
        model.load_state_dict(plain.state_dict())
        octavo.quantize(model, {**octavo.preset(preset), "algorithm": "max"}, [tokens()], quiet=True)
        errors.append((logits(model) - exact).norm().item())

    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("config", [AFFINE, ROTATED], ids=["affine", "rotated"])
def test_saved_and_restored(config: dict[str, Any], tmp_path: Path) -> None:
    model = octavo.quantize(tiny_model("llama"), config, [tokens()], quiet=True)
    octavo.save(model, tmp_path / "saved")

    restored = octavo.restore(tiny_model("llama"), tmp_path / "saved")

    assert same_bits(logits(restored), logits(model))
    assert octavo.history(restored) == octavo.history(model)
    octavo.unquantize(restored)
    assert state_bytes(restored) == state_bytes(tiny_model("llama"))


@pytest.mark.parametrize("config", [AFFINE, ROTATED], ids=["affine", "rotated"])
def test_maxima_of_plain_tensors_are_no_statistics_of_these(config: dict[str, Any]) -> None:
    model = tiny_model("llama")
    statistics = octavo.collect_statistics(model, [tokens()], quiet=True)

    with pytest.raises(
        CalibrationError,
        match=r"quantizers rotate theirs or subtract a bias: .*k_bmm_quantizer.*'bias' and 'rotate'",
    ):
        octavo.quantize(model, config, statistics=statistics, quiet=True)


def test_switching_and_changing_keep_them() -> None:
    model = octavo.quantize(tiny_model("llama"), AFFINE, [tokens()], quiet=True)
    before = logits(model)
    octavo.disable_quantizer(model, "*[kv]_bmm_quantizer")
    assert not same_bits(logits(model), before)
    octavo.enable_quantizer(model, "*[kv]_bmm_quantizer")
    assert same_bits(logits(model), before)

    octavo.set_quantizer_attribute(model, "*v_bmm_quantizer", {"num_bits": 8})
    changed: Any = model.get_submodule(f"{LAYER}.v_bmm_quantizer")
    assert (changed.bias, changed.bias_value) == (Bias((-4, -2)), None)
    octavo.calibrate(model, "max", [tokens()], quiet=True)
    assert changed.bias_value.shape == (1, 2, 1, 16)


def test_what_rotates_is_not_changed_afterwards() -> None:
    model = octavo.quantize(tiny_model("llama"), ROTATED, [tokens()], quiet=True)
    before = logits(model)

    with pytest.raises(
        ConfigError,
        match=r"k_bmm_quantizer: what rotates is chosen .* found rotated, asked for none\. Unquantize",
    ):
        octavo.set_quantizer_by_cfg(model, [{"quantizer_name": "*k_bmm_quantizer", "cfg": {"num_bits": 8}}])

    assert same_bits(logits(model), before)
    octavo.set_quantizer_attribute(
        model, "*k_bmm_quantizer", {"num_bits": 8, "block_sizes": None, "type": "dynamic"}
    )
    changed: Any = model.get_submodule(f"{LAYER}.k_bmm_quantizer")
    assert (changed.spec, str(changed.rotation)) == (QuantSpec("int8", dynamic=True), "rotated")


def test_rotated_queries_and_keys_have_their_products() -> None:
    model = tiny_model("llama")
    exact = logits(model)
    octavo.quantize(model, ROTATED, [tokens()], quiet=True)

    octavo.disable_quantizer(model, "*[kv]_bmm_quantizer")

    assert not same_bits(logits(model), exact), "both are rotated still"
    torch.testing.assert_close(logits(model), exact, rtol=1e-5, atol=1e-6)


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    model = octavo.quantize(tiny_model("llama"), AFFINE, [tokens()], quiet=True)
    octavo.save(model, tmp_path / "saved")
    record = next(file for file in (tmp_path / "saved").iterdir() if '"method": "mean"' in _text(file))
    record.write_text(_text(record).replace('"method": "mean"', '"method": "median"'))

    with pytest.raises(ConfigError, match="bias method 'median': expected one of mean, max_min"):
        octavo.restore(tiny_model("llama"), tmp_path / "saved")


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.suffix == ".json" else ""
