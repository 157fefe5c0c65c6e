"""Where a dialect cannot hold the numbers: what is said of it, checked against the files; nothing without asking."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import octavo
from helpers.conversions import different, exported, values_of
from helpers.exporters_models import MLP, json_of, tensors_of
from helpers.reference import folder
from octavo.core.conversion.convert import ConversionReport
from octavo.core.errors import ExportError


def converted(source: Path, out: Path, dialect: str = "compressed_tensors") -> ConversionReport:
    return octavo.convert_checkpoint(source, out, dialect=dialect, lossy=True, quiet=True)


@pytest.mark.parametrize("base", ["dense", "moe"])
def test_scales_that_bf16_cannot_hold_move_no_code(shared: Path, tmp_path: Path, base: str) -> None:
    source = folder(shared, base) / "INT8_DEFAULT_CFG"

    report = converted(source, tmp_path / "ct")

    before, after = load_file(source / "model.safetensors"), tensors_of(tmp_path / "ct")
    names = [name for name, tensor in before.items() if tensor.dtype == torch.int8]
    changes = {change.name: change for change in report.changes}
    assert [name for name in names if not torch.equal(before[name], after[name])] == []
    for name in names:
        scale, rounded = before[f"{name}_scale"], after[f"{name}_scale"].flatten()
        assert torch.equal(rounded, scale.bfloat16())
        moved = ((rounded.float() - scale) / scale).abs().max().item()
        assert changes[name].scales == pytest.approx(moved, rel=1e-3)
        steps = before[name].float().abs().amax(1) * (scale / rounded.float() - 1).abs()
        assert changes[name].steps == pytest.approx(steps.max().item(), rel=1e-3)
    assert changes.keys() == set(names)
    assert (report.share_of_codes, max(change.steps for change in report.changes) < 0.5) == (0, True)

    again = octavo.convert_checkpoint(tmp_path / "ct", tmp_path / "back", dialect="unified_hf", quiet=True)
    assert again.changes == ()
    back = tensors_of(tmp_path / "back")
    assert [name for name in names if not torch.equal(before[name], back[name])] == []
    assert {n for n in before if not torch.equal(before[n], back[n])} == {f"{n}_scale" for n in names}


def test_one_scale_of_joined_layers_moves_codes_by_half_a_step(shared: Path, tmp_path: Path) -> None:
    source = folder(shared, "dense") / "FP8_DEFAULT_CFG"

    report = octavo.convert_checkpoint(source, tmp_path / "out", target="vllm", lossy=True, quiet=True)

    before, after = load_file(source / "model.safetensors"), tensors_of(tmp_path / "out")
    codes = [name for name, tensor in before.items() if tensor.dtype == torch.float8_e4m3fn]
    shares = {}
    for name in codes:
        group = next(
            (g for g in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")) if _own(name) in g), ()
        )
        members = [name.replace(_own(name), own) for own in group] or [name]
        largest = max(before[f"{member}_scale"] for member in members)
        assert torch.equal(after[f"{name}_scale"], largest)
        ratio = before[f"{name}_scale"].double() / largest.double()
        if ratio == 1:
            assert torch.equal(_bytes(before[name]), _bytes(after[name]))
            continue
        shares[name] = (before[name].float() != after[name].float()).double().mean().item()
        exact, stored = before[name].double() * ratio, after[name].double()
        assert ((exact - stored).abs() <= _gap(exact) / 2 * (1 + 1e-6)).all()
    changes = {change.name: change for change in report.changes}
    assert report.dialect == "unified_hf"
    assert {name: change.codes for name, change in changes.items()} == pytest.approx(shares)
    assert max(change.steps for change in report.changes) <= 0.5
    num_codes = sum(before[name].numel() for name in codes)
    moved = sum(share * before[name].numel() for name, share in shares.items())
    assert report.share_of_codes == pytest.approx(moved / num_codes)
    assert different(tmp_path / "out", _again(tmp_path / "out", tmp_path / "again")) == []


def test_nothing_is_written_without_asking(tmp_path: Path) -> None:
    source = exported("INT8_WEIGHT_ONLY_CFG", tmp_path / "unified", torch.bfloat16)
    message = (
        r"compressed_tensors cannot hold 14 tensors exactly, in which 0\.00% of all codes change: "
        r"model\.\S+\.weight: 0\.00% of its codes, values by 0\.\d+ steps at most, scales by 0\.00\d+ at most, "
        r".* and 11 more \(14 in all\)\. Nothing was written; lossy=True \(--lossy\) writes the nearest numbers"
    )

    with pytest.raises(ExportError, match=message):
        octavo.convert_checkpoint(source, tmp_path / "ct", dialect="compressed_tensors", quiet=True)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["unified"]


def test_what_changed_is_said_and_written_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = exported("INT8_WEIGHT_ONLY_CFG", tmp_path / "unified", torch.bfloat16)
    capsys.readouterr()

    report = octavo.convert_checkpoint(source, tmp_path / "ct", dialect="compressed_tensors", lossy=True)

    assert "octavo: warning: compressed_tensors cannot hold 14 tensors exactly" in capsys.readouterr().err
    record = json_of(tmp_path / "ct" / "octavo_conversion.json")
    assert (record["source_dialect"], record["dialect"]) == ("unified_hf", "compressed_tensors")
    assert record["changes"] == json.loads(json.dumps([vars(change) for change in report.changes]))
    values, after = values_of(source), values_of(tmp_path / "ct")
    assert torch.allclose(values[f"{MLP}.weight"], after[f"{MLP}.weight"], rtol=2**-8, atol=0)


def _own(name: str) -> str:
    return name.split(".")[-2]


def _gap(x: Tensor) -> Tensor:
    """Return the distance between E4M3 numbers around `x`, as the OCP specification lays them out."""
    return torch.exp2(torch.log2(x.abs().clamp_min(2.0**-6)).floor() - 3)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def _again(source: Path, out: Path) -> Path:
    """Convert what suits the target already, for which nothing is left to change."""
    assert octavo.convert_checkpoint(source, out, target="vllm", quiet=True).changes == ()
    return out


def test_a_rule_of_the_readers_for_inputs_is_a_change(tmp_path: Path) -> None:
    source = exported("MXFP4_DEFAULT_CFG", tmp_path / "unified")
    rule = r"down_proj\.input_quantizer: rounded as e2m1 block\{-1:32\} e8m0 even dynamic, not e2m1 block\{-1:32\} e8m0"
    with pytest.raises(ExportError, match=rule):
        octavo.convert_checkpoint(source, tmp_path / "out", dialect="compressed_tensors", quiet=True)

    report = converted(source, tmp_path / "out")

    assert {(change.codes, change.steps, change.scales) for change in report.changes} == {(0, 0, 0)}
    states = octavo.plugins().exporter("compressed_tensors").open(tmp_path / "out").activations()
    assert {str(state.spec) for state in states.values()} == {"e2m1 block{-1:32} e8m0 even dynamic"}
