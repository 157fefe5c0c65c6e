"""torchao's side of decode.py; run by the Python of an environment that has torchao and transformers."""

from __future__ import annotations

import argparse
import json
import statistics

import decode_workload as workload
import torch


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for case in ("INT4 g128", "INT8"):
        print(json.dumps(measured(case, options.repeats)), flush=True)


def measured(case: str, repeats: int) -> dict[str, object]:
    import torchao
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    row: dict[str, object] = {"tool": f"torchao {torchao.__version__}", "case": case}
    config = (
        Int4WeightOnlyConfig(group_size=workload.BLOCK) if case.startswith("INT4") else Int8WeightOnlyConfig()
    )
    model = workload.model(torch.bfloat16)
    dense = weight_bytes(model)
    try:
        quantize_(model, config, filter_fn=lambda module, name: workload.is_measured(name, module))
        times = [time for _ in range(repeats) for time in workload.milliseconds(model)]
    except (ImportError, RuntimeError, NotImplementedError, AssertionError, ValueError) as error:
        return row | {"refused": str(error).splitlines()[0]}
    row |= {"milliseconds": statistics.median(times), "least": min(times)}
    return row | {"memory": weight_bytes(model) / dense}


def weight_bytes(model: torch.nn.Module) -> int:
    total = 0
    for name, module in model.named_modules():
        if workload.is_measured(name, module):
            weight = module.weight
            names = getattr(weight, "tensor_data_names", ())
            parts = [getattr(weight, part) for part in names] if names else [weight]
            total += sum(part.nbytes for part in parts)
    return total


if __name__ == "__main__":
    main()
