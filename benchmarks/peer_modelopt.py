"""ModelOpt's side of ptq_cost.py; run by the Python of an environment that has nvidia-modelopt and transformers."""

from __future__ import annotations

import copy
import json
import statistics
import sys

import torch
import workload


def main() -> None:
    import modelopt
    import modelopt.torch.quantization as mtq

    torch.set_num_threads(1)
    presets, repeats = sys.argv[1].split(","), int(sys.argv[2])
    base, rows = workload.model(), []
    for preset in presets:
        ratios, seconds = [], []
        for _ in range(repeats):
            model = copy.deepcopy(base)
            plain = workload.cpu_seconds(lambda: workload.forward_loop(base))
            config = getattr(mtq, preset)
            spent = workload.cpu_seconds(lambda: mtq.quantize(model, config, workload.forward_loop))  # noqa: B023
            ratios.append(spent / plain)
            seconds.append(spent)
        rows.append(
            {
                "tool": f"modelopt {modelopt.__version__}",
                "preset": preset,
                "passes": statistics.median(ratios),
                "cpu_seconds": statistics.median(seconds),
            }
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
