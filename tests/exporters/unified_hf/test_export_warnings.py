"""What a checkpoint does not hold, or nobody reads, is said on stderr and in the report."""

from __future__ import annotations

from pathlib import Path

import pytest

import octavo
from helpers.exporters_models import quantized

OUTPUTS = {"quantizer_name": "*down_proj.output_quantizer", "cfg": {"num_bits": (4, 3)}}
QUERIES = {"quantizer_name": "*q_bmm_quantizer", "cfg": {"num_bits": (4, 3)}}
PRODUCTS = {"quantizer_name": "*.self_attn.[pb]*_quantizer", "cfg": {"num_bits": (4, 3)}}
KV = octavo.merge_configs("MXFP8_DEFAULT_CFG", "FP8_KV_CFG")


def with_rule(preset: str, rule: dict[str, object]) -> dict[str, object]:
    config = octavo.preset(preset)
    config["quant_cfg"].append(rule)
    return config


@pytest.mark.parametrize(
    ("config", "warning"),
    [
        (
            "W4A8_MXFP4_FP8_CFG",
            "14 layers were never calibrated (algorithm None): the checkpoint has no activation scales for them "
            "(model.layers.0.self_attn.q_proj, model.layers.0.self_attn.k_proj and 12 more (14 in all))",
        ),
        (
            KV,
            "2 layers were never calibrated (algorithm None): the checkpoint has no activation scales for them "
            "(model.layers.0.self_attn, model.layers.1.self_attn)",
        ),
        (
            with_rule("FP8_DEFAULT_CFG", OUTPUTS),
            "the dialect has no place for 2 quantizers: model.layers.0.mlp.down_proj.output_quantizer, "
            "model.layers.1.mlp.down_proj.output_quantizer",
        ),
        (
            with_rule("FP8_DEFAULT_CFG", QUERIES),
            "the dialect has no place for 2 quantizers: model.layers.0.self_attn.q_bmm_quantizer, "
            "model.layers.1.self_attn.q_bmm_quantizer",
        ),
        (
            with_rule("FP8_DEFAULT_CFG", PRODUCTS),
            "the dialect has no place for 4 quantizers: model.layers.0.self_attn.p_bmm_quantizer, "
            "model.layers.0.self_attn.bmm2_output_quantizer and 2 more (4 in all)",
        ),
        ("MXFP6_DEFAULT_CFG", "no serving engine reads MXFP6 yet; Octavo does"),
        ("MXINT8_DEFAULT_CFG", "no serving engine reads MXINT8 yet; Octavo does"),
        ("MXFP4_MLP_WEIGHT_ONLY_CFG", "no serving engine reads W4A16_MXFP4 yet; Octavo does"),
    ],
    ids=[
        "no activation scales",
        "no cache scales",
        "outputs",
        "queries",
        "products",
        "MXFP6",
        "MXINT8",
        "W4A16_MXFP4",
    ],
)
def test_warnings(
    config: str | dict[str, object], warning: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = quantized(config)

    report = octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out")

    assert report.warnings == (warning,)
    assert capsys.readouterr() == ("", f"octavo: warning: {warning}\n")


def test_quiet_keeps_them_in_the_report_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = octavo.export_hf_checkpoint(
        quantized("MXFP6_DEFAULT_CFG"), export_dir=tmp_path / "out", quiet=True
    )

    assert len(report.warnings) == 1
    assert capsys.readouterr() == ("", "")


def test_what_engines_read_has_no_warning(tmp_path: Path) -> None:
    config = octavo.merge_configs("FP8_DEFAULT_CFG", "FP8_KV_CFG")

    assert (
        octavo.export_hf_checkpoint(quantized(config), export_dir=tmp_path / "out", quiet=True).warnings == ()
    )


def test_a_cache_without_scales_is_still_quantized_when_read_back(tmp_path: Path) -> None:
    octavo.export_hf_checkpoint(quantized(KV), export_dir=tmp_path / "out", quiet=True)

    served = octavo.load_quantized(tmp_path / "out")

    assert hasattr(served.get_submodule("model.layers.0.self_attn"), "k_bmm_quantizer")
