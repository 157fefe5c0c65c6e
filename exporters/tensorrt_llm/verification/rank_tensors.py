"""The tensors that one rank of a TensorRT-LLM checkpoint has: names, sizes and formats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from octavo.core.verification.finding import Finding, error, warning
from octavo.core.verification.layer_rules import check_layer, layer_rules
from octavo.core.verification.stored_files import StoredTensors
from octavo.core.verification.tensor_checks import FLOATS
from octavo.exporters.tensorrt_llm.verification.config_rules import reader_table

_OPTIONAL = (
    "k_cache_scaling_factor",
    "v_cache_scaling_factor",
    "bias",
    "position_embedding.weight",
    "ln_embed.weight",
)


class RankRules:
    """What the reader needs of each rank.

    Args:
        config: config.json.
        mixed: `quantized_layers` of quant_cfg.json, where the checkpoint has several formats.
    """

    def __init__(self, config: Mapping[str, Any], mixed: Mapping[str, Any]) -> None:
        self._config, self._mixed = config, mixed
        self._quantization = config.get("quantization") or {}
        mapping = config.get("mapping") or {}
        self._tp, self._pp = mapping.get("tp_size", 1), mapping.get("pp_size", 1)
        self._layout = reader_table()["layouts"][reader_table()["architectures"][config["architecture"]]]

    def check(self, files: StoredTensors, rank: int) -> Iterator[Finding]:
        """Yield what is wrong with the tensors of a rank."""
        taken: set[str] = set()
        stage, sizes = rank // self._tp, self._sizes()
        layers = [f"transformer.layers.{i}" for i in range(self._config["num_hidden_layers"] // self._pp)]
        for layer in layers:
            yield from self._check_layer(files, layer, sizes, taken)
        if stage == 0:
            yield from self._check_table(files, "transformer.vocab_embedding", taken, is_head=False)
        if stage == self._pp - 1:
            if self._config.get("do_layer_norm_before", True):
                yield from self._check_plain(files, "transformer.ln_f", (sizes["hidden"],), taken)
            tied = self._pp == 1 and "lm_head.weight" not in files.names
            if not (tied and self._config.get("share_embedding_table")):
                yield from self._check_table(files, "lm_head", taken, is_head=True)
        for name in sorted(files.names - taken):
            is_experts = "router" in self._layout and ".mlp." in name  # of which nothing is known here
            if not (is_experts or name.endswith(_OPTIONAL)):
                yield warning(name, "a tensor", "no such tensor", "The reader leaves it out.")

    def _check_layer(
        self, files: StoredTensors, layer: str, sizes: Mapping[str, int], taken: set[str]
    ) -> Iterator[Finding]:
        for linear, (rows, columns) in self._layout["linears"].items():
            module = f"{layer}.{linear}"
            yield from self._check_linear(files, module, sizes[rows], sizes[columns], taken)
        for norm, size in self._norms():
            yield from self._check_plain(files, f"{layer}.{norm}", (sizes[size],), taken)
        if self._quantization.get("kv_cache_quant_algo"):
            rules = layer_rules(reader_table()["cache"])
            taken |= {f"{layer}.attention.{suffix}" for suffix in rules}
            yield from check_layer(files, f"{layer}.attention", rules, sizes)

    def _norms(self) -> Iterator[tuple[str, str]]:
        """Yield the name of each norm of a layer, and which size it has."""
        more = self._layout.get("more_norms", {})
        has_more = more and self._config.get(more["field"]) == more["value"]
        yield from (
            (norm, "hidden") for norm in [*self._layout["norms"], *(more["norms"] if has_more else ())]
        )
        yield from ((norm, "head") for norm in self._layout.get("head_norms", ()))

    def _check_linear(
        self, files: StoredTensors, module: str, rows: int, columns: int, taken: set[str]
    ) -> Iterator[Finding]:
        algo = self._algo(module)
        rules = layer_rules(reader_table()["linears"][algo])
        taken |= {f"{module}.{suffix}" for suffix in rules}
        weight = f"{module}.weight"
        if algo != "plain" and len(rules) > 1 and weight in files.names and files.dtype(weight) in FLOATS:
            yield error(
                weight, f"an unquantized weight ({files.dtype(weight)})", f"{algo} with {', '.join(rules)}",
                "List the module in exclude_modules.",
            )  # fmt: skip
            return
        group = self._quantization.get("group_size") or 128
        yield from check_layer(files, module, rules, {"out": rows, "in": columns, "group": group})

    def _check_table(
        self, files: StoredTensors, module: str, taken: set[str], is_head: bool
    ) -> Iterator[Finding]:
        """Check the embedding or the head, whose rows are divided among ranks."""
        rows, columns = self._config["vocab_size"], self._config["hidden_size"]
        if is_head or (self._is_parallel() and not self._config.get("embedding_sharding_dim")):
            rows = -(-rows // self._tp)
        elif self._is_parallel():
            columns //= self._tp
        if is_head:
            yield from self._check_linear(files, module, rows, columns, taken)
        else:
            yield from self._check_plain(files, module, (rows, columns), taken)

    def _is_parallel(self) -> bool:
        return bool(self._config.get("use_parallel_embedding"))

    def _check_plain(
        self, files: StoredTensors, module: str, shape: tuple[int, ...], taken: set[str]
    ) -> Iterator[Finding]:
        row = {"dtype": list(FLOATS), "shape": list(shape), "values": "finite"}
        taken.add(f"{module}.weight")
        yield from check_layer(files, module, layer_rules({"weight": row}), {})

    def _algo(self, module: str) -> str:
        """Return the format that the reader takes a linear layer for."""
        algo = self._quantization.get("quant_algo")
        if algo == "MIXED_PRECISION":
            return str(self._mixed.get(module, {}).get("quant_algo", "plain"))
        excluded = self._quantization.get("exclude_modules") or reader_table()["excluded_by_default"]
        is_excluded = any(fnmatchcase(module, pattern) for pattern in excluded)
        return "plain" if algo is None or is_excluded else str(algo)

    def _sizes(self) -> dict[str, int]:
        config, tp = self._config, self._tp
        heads = config["num_attention_heads"]
        kv_heads = config.get("num_key_value_heads") or heads
        head = config.get("head_size") or config["hidden_size"] // heads
        width = config.get("intermediate_size") or 4 * config["hidden_size"]
        return {
            "hidden": config["hidden_size"],
            "head": head,
            "heads": heads // tp * head,
            "qkv": (heads // tp + 2 * -(-kv_heads // tp)) * head,
            "width": width // tp,
            "two_widths": 2 * (width // tp),
        }
