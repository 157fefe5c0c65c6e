"""`torch.export`: quantized layers export whole, as operators that no decomposition opens."""

from __future__ import annotations

import io

import pytest
import torch
from torch.export import Dim, ExportedProgram

from helpers.ops_cases import normal
from helpers.ops_models import CONFIGS, quantized_feed_forward
from octavo.core.formats import parse_chain

LINEAR = torch.ops.octavo.fake_quantized_linear.default
X = normal(3, 4, 64, seed=7) * 1.5


def targets(program: ExportedProgram) -> list[object]:
    return [node.target for node in program.graph.nodes if node.op == "call_function"]


# torch's own deprecation, raised inside run_decompositions
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.parametrize("config", CONFIGS)
def test_same_bytes_and_opaque_operators(config: str) -> None:
    model = quantized_feed_forward(config)
    exported = torch.export.export(model, (X,), dynamic_shapes=({0: Dim("rows"), 1: Dim("tokens")},))
    decomposed = exported.run_decompositions()

    assert targets(exported).count(LINEAR) == 2
    assert targets(decomposed) == targets(exported)
    for x in (X, normal(7, 2, 64)):
        assert torch.equal(exported.module()(x), model(x))
        assert torch.equal(decomposed.module()(x), model(x))


def test_the_graph_says_which_formats_it_computes() -> None:
    model = quantized_feed_forward("chained")
    exported = torch.export.export(model, (X,))

    node = next(node for node in exported.graph.nodes if node.target == LINEAR)
    assert parse_chain(node.args[4]) == (model.up.input_quantizer.spec,)
    assert parse_chain(node.args[6]) == tuple(s.spec for s in model.up.weight_quantizer.stages())


def test_calibrated_state_is_exported_as_buffers() -> None:
    model = quantized_feed_forward("INT8_DEFAULT_CFG")
    exported = torch.export.export(model, (X,))

    assert exported.state_dict.keys() == model.state_dict().keys()
    assert "up.weight_quantizer.amax" in exported.graph_signature.inputs_to_buffers.values()


def test_an_exported_program_survives_its_file_format() -> None:
    model = quantized_feed_forward("NVFP4_DEFAULT_CFG")
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (X,)), file)
    file.seek(0)

    loaded = torch.export.load(file)

    assert targets(loaded).count(LINEAR) == 2
    assert torch.equal(loaded.module()(X), model(X))
