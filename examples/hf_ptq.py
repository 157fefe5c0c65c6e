"""Quantize a Hugging Face causal language model and export it, with the flags of ModelOpt's script of this name.

Run: python examples/hf_ptq.py [--pyt_ckpt_path MODEL_DIR] [--qformat fp8] [--kv_cache_qformat fp8] [--export_path OUT]
Without a model: the bundled one. --dataset takes a text file, a .jsonl file, or a data set's name for `datasets`.
Flags of that script that are not available are refused by name; --help lists them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import octavo

DATA = Path(__file__).parent / "data"
QFORMATS = {
    "fp8": "FP8_DEFAULT_CFG",
    "fp8_pc_pt": "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "fp8_pb_wo": "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG",
    "int8": "INT8_DEFAULT_CFG",
    "int8_sq": "INT8_SMOOTHQUANT_CFG",
    "int8_wo": "INT8_WEIGHT_ONLY_CFG",
    "int4": "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "int4_awq": "INT4_AWQ_CFG",
    "w4a8_awq": "W4A8_AWQ_BETA_CFG",
    "nvfp4": "NVFP4_DEFAULT_CFG",
    "nvfp4_awq": "NVFP4_AWQ_LITE_CFG",
    "nvfp4_mse": "NVFP4_W4A4_WEIGHT_MSE_FP8_SWEEP_CFG",
    "nvfp4_mlp_only": "NVFP4_MLP_ONLY_CFG",
    "nvfp4_experts_only": "NVFP4_EXPERTS_ONLY_CFG",
    "nvfp4_omlp_only": "NVFP4_OMLP_ONLY_CFG",
    "w4a8_mxfp4_fp8": "W4A8_MXFP4_FP8_CFG",
    "mxfp8": "MXFP8_DEFAULT_CFG",
    "mxfp6": "MXFP6_DEFAULT_CFG",
    "mxfp4": "MXFP4_DEFAULT_CFG",
}
# Flags of that script for what this version of Octavo does not do.
NOT_AVAILABLE = {
    "a search of formats": ("auto_quantize_bits", "auto_quantize_method", "auto_quantize_checkpoint"),
    "AWQ": ("awq_block_size",),
    "sparsity": ("sparsity_fmt",),
    "calibration with images": ("vlm", "calib_with_images"),
    "speculative decoding": ("specdec_offline_dataset",),
    "a share of experts to calibrate": ("moe_calib_experts_ratio",),
    "another export": ("vllm_fakequant_export", "cast_mxfp4_to_nvfp4", "inference_pipeline_parallel"),
    "models that do not fit into memory": (
        "low_memory_mode", "cpu_offload", "offload_folder", "use_fsdp2", "use_seq_device_map",
        "gpu_max_mem_percentage", "max_gpu_memory_gb", "max_cpu_memory_gb",
    ),
    "logging to MLflow": ("mlflow", "mlflow_experiment", "mlflow_tracking_uri", "mlflow_run_name"),
}  # fmt: skip
KV_CACHE_QFORMATS = {"none": (), "fp8": ("FP8_KV_CFG",), "nvfp4": ("NVFP4_KV_CFG",)}


class Refused(argparse.Action):
    """A flag that ends the script: its help says why."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, values: object, flag: str | None = None
    ) -> None:
        """Exit with status 2."""
        parser.error(f"{flag}: {self.help}")


def main() -> None:
    options = parse_arguments()
    try:
        quantize_and_export(options)
    except octavo.OctavoError as error:
        sys.exit(f"hf_ptq.py: {error}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--pyt_ckpt_path", default=str(DATA / "stories260k"))
    parser.add_argument("--qformat", choices=QFORMATS, default="fp8")
    parser.add_argument("--kv_cache_qformat", choices=KV_CACHE_QFORMATS, default="fp8")
    parser.add_argument("--dataset", default=str(DATA / "calibration.jsonl"))
    parser.add_argument("--calib_size", type=int, default=512, help="samples")
    parser.add_argument("--calib_seq", type=int, default=512, help="tokens per sample")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--export_path", type=Path, default=Path("exported_model"))
    parser.add_argument("--export_fmt", choices=["hf"], default="hf")
    parser.add_argument("--inference_tensor_parallel", type=int, default=1, help="checked before any work")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--attn_implementation", help="of transformers")
    parser.add_argument("--trust_remote_code", action="store_true")
    parser.add_argument("--skip_generate", action="store_true", help="always: nothing is generated here")
    for what, flags in NOT_AVAILABLE.items():
        for flag in flags:
            parser.add_argument(f"--{flag}", nargs="*", action=Refused, help=f"not available: {what}")
    return parser.parse_args()


def quantize_and_export(options: argparse.Namespace) -> None:
    trust = options.trust_remote_code
    model = AutoModelForCausalLM.from_pretrained(
        options.pyt_ckpt_path,
        dtype="auto",
        trust_remote_code=trust,
        attn_implementation=options.attn_implementation,
    ).to(options.device)
    tokenizer = AutoTokenizer.from_pretrained(options.pyt_ckpt_path, trust_remote_code=trust)
    config = octavo.merge_configs(QFORMATS[options.qformat], *KV_CACHE_QFORMATS[options.kv_cache_qformat])
    batches = octavo.text_batches(
        tokenizer, options.dataset, options.calib_size, options.calib_seq, options.batch_size
    )

    octavo.quantize(model, config, batches, tp=options.inference_tensor_parallel)
    report = octavo.export_hf_checkpoint(model, export_dir=options.export_path, tokenizer=tokenizer)

    print(f"{report.directory}: {report.num_tensors} tensors, {report.num_bytes / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
