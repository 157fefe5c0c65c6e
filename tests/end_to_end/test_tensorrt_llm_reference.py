"""TensorRT-LLM checkpoints equal ModelOpt's: names, dtypes, shapes, bytes and config.json, on one rank and on four."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import nn

import octavo
from helpers.reference import same_tensor
from helpers.tensorrt_llm_reference import PRESETS, reference_folder, reference_model

LAYOUTS = {"tp1pp1": (1, 1), "tp2pp2": (2, 2)}
# Derived from activations, whose last bits follow the machine's matrix kernels.
ACTIVATION_SCALES = ("activation_scaling_factor", "cache_scaling_factor")


@pytest.fixture(scope="module", params=PRESETS)
def case(request: pytest.FixtureRequest, shared: Path) -> tuple[str, nn.Module]:
    return request.param, reference_model(shared, request.param)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_export_equals_the_reference(
    shared: Path, tmp_path: Path, case: tuple[str, nn.Module], layout: str
) -> None:
    preset, model = case
    reference, out = reference_folder(shared, preset, layout), tmp_path / "out"
    tp, pp = LAYOUTS[layout]

    octavo.export_tensorrt_llm_checkpoint(
        model,
        "llama",
        export_dir=out,
        inference_tensor_parallel=tp,
        inference_pipeline_parallel=pp,
        quiet=True,
    )

    ranks = [f"rank{rank}.safetensors" for rank in range(tp * pp)]
    assert sorted(path.name for path in out.glob("*.safetensors")) == ranks
    for name in ranks:
        found, expected = load_file(out / name), load_file(reference / name)
        assert found.keys() == expected.keys()
        assert [
            key for key in expected if not same_tensor(key, found[key], expected[key], ACTIVATION_SCALES)
        ] == []
    assert _config_of(out) == _config_of(reference)
    assert not (out / "quant_cfg.json").exists()


def _config_of(folder: Path) -> dict[str, Any]:
    """Return config.json without who wrote it."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config.pop("producer")
    return config
