"""AWQ's exponents, found from XᵀX, are those of a search by true forward passes on every layer of a trained model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import octavo
from octavo.core.calibration.solvers.awq import alphas, awq_scale, relative_columns
from octavo.core.modules import quantized_layers
from octavo.core.modules.linear import QuantLinear

INT4_GROUPS_OF_32 = octavo.merge_configs("INT4_AWQ_CFG")
for rule in INT4_GROUPS_OF_32["quant_cfg"]:
    if "cfg" in rule and "block_sizes" in rule["cfg"]:
        rule["cfg"]["block_sizes"][-1] = 32


def data(shared: Path) -> list[Tensor]:
    """Four windows of 128 tokens of the training text."""
    tokenizer = AutoTokenizer.from_pretrained(shared / "data" / "babyllama105-hf")
    with (shared / "data" / "text-tinystories" / "train_sample.txt").open(encoding="utf-8") as file:
        text = file.read(4_000)
    ids = torch.tensor(tokenizer(text)["input_ids"])[: 4 * 128]
    return list(ids.reshape(4, 1, 128))


@torch.no_grad()
def losses(layer: QuantLinear, batches: list[Tensor]) -> dict[float, float]:
    """Return the summed squared error of the layer's output for each exponent, by running the layer."""
    act_mean = torch.stack([x.abs().flatten(0, -2).mean(0) for x in batches]).mean(0)
    columns, x = relative_columns(layer.weight, 32), torch.cat([x.flatten(0, -2) for x in batches])
    exact = x.double() @ layer.weight.double().T
    found = {}
    for alpha in alphas():
        scale = awq_scale(act_mean, columns, alpha)
        layer.input_quantizer.pre_quant_scale = 1 / scale
        layer.weight_quantizer.stages()[0].pre_quant_scale = scale
        amax = (layer.weight * scale).abs().reshape(len(layer.weight), -1, 32).amax(-1)
        layer.weight_quantizer.set_state(amax=amax.reshape(layer.weight_quantizer.amax.shape))
        found[alpha] = (layer(x).double() - exact).square().sum().item()
    return found


def test_exponents_equal_brute_force(shared: Path) -> None:
    batches = data(shared)
    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        shared / "data" / "babyllama105-hf", dtype=torch.float32
    )
    octavo.quantize(model, INT4_GROUPS_OF_32, batches, quiet=True)
    rows = octavo.core.modes.record.last_record(model, "quantize").state["report"]["weights"]  # type: ignore[union-attr]
    found = {row["weight"]: row["alpha"] for row in rows}
    octavo.unquantize(model)
    seen: dict[str, list[Tensor]] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, n=name: seen.setdefault(n, []).append(args[0]))
        for name, module in model.named_modules()
        if f"{name}.weight" in found
    ]
    with torch.no_grad():
        for ids in batches:
            model(ids)
    for handle in handles:
        handle.remove()
    octavo.quantize(model, {**INT4_GROUPS_OF_32, "algorithm": "max"}, quiet=True)

    clear, wrong = 0, []
    for name, layer in quantized_layers(model):
        if not isinstance(layer, QuantLinear) or f"{name}.weight" not in found:
            continue
        by_loss = sorted((loss, alpha) for alpha, loss in losses(layer, seen[name]).items())
        if by_loss[1][0] > 1.001 * by_loss[0][0]:
            clear += 1
            if abs(by_loss[0][1] - found[f"{name}.weight"]) > 1e-3:
                wrong.append((name, by_loss[:2], found[f"{name}.weight"]))

    assert wrong == []
    assert clear >= 25
    assert len(set(found.values())) > 2, "the layers differ"
