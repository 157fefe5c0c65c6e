"""Megatron-core on a machine without GPUs: for scripts of `tests/launched` only, since it changes torch for good.

Megatron-core asks CUDA for its device, its streams and its random state in many places. `on_cpu` answers with the
CPU's; everything else is the real package, joined by gloo.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import MagicMock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

VOCABULARY, TOKENS = 64, 8


class _CudaToCpu(TorchFunctionMode):
    """Makes tensors on the CPU that were asked for on CUDA, on the thread that enters it."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device")).startswith("cuda"):
            kwargs["device"] = "cpu"
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.to and len(args) > 1 and str(args[1]).startswith("cuda"):
            args = (args[0], "cpu", *args[2:])
        return func(*args, **kwargs)


def on_cpu() -> None:
    """Make Megatron-core run on the CPU in this process; called once, before it is imported elsewhere."""
    warnings.filterwarnings("ignore", module=r"megatron\..*")
    cuda, stream = torch.cuda, MagicMock()
    cuda.current_device = lambda: "cpu"
    cuda.synchronize = lambda *_, **__: None
    cuda.Stream = cuda.Event = cuda.stream = cuda.current_stream = stream
    cuda.manual_seed = torch.manual_seed
    cuda.get_rng_state = lambda *_, **__: torch.get_rng_state()
    from megatron.core.tensor_parallel import random
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    moe_utils.te_general_gemm = getattr(
        moe_utils, "te_general_gemm", None
    )  # unbound without Transformer Engine
    token_dispatcher.maybe_move_tensor_to_cpu = _split_sizes(token_dispatcher.maybe_move_tensor_to_cpu)
    _CudaToCpu().__enter__()


def _split_sizes(move: Callable[..., Any]) -> Callable[..., Any]:
    """Return `move` with numbers for what gloo takes as split sizes, which it leaves tensors on the CPU."""

    def moved(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        is_tensor = as_numpy and torch.is_tensor(tensor)
        return tensor.numpy() if is_tensor else move(tensor, as_numpy, False)

    return moved


def lay_out(tp: int = 1, pp: int = 1, ep: int = 1, etp: int | None = None, seed: int = 7) -> None:
    """Divide the joined ranks anew (what is left is data parallel), and seed everything that is random."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    _end_groups(parallel_state)
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        expert_model_parallel_size=ep,
        expert_tensor_parallel_size=etp,
    )
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed)


def _end_groups(state: Any) -> None:
    """End the process groups of the last layout: gloo keeps threads for each, thousands after some layouts."""
    held = [value if isinstance(value, list) else [value] for value in vars(state).values()]
    groups = {one for several in held for one in several if isinstance(one, dist.ProcessGroup)}
    for group in groups - {dist.group.WORLD}:
        dist.destroy_process_group(group)


def config(**fields: Any) -> Any:
    """Return a `TransformerConfig` of two small Llama-shaped layers for the layout that `lay_out` made, fp32."""
    from megatron.core import parallel_state
    from megatron.core.transformer.transformer_config import TransformerConfig

    small = {
        "num_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "ffn_hidden_size": 128,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": nn.functional.silu,
        "add_bias_linear": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "use_cpu_initialization": True,  # which gives every layout the same weights
        "pipeline_dtype": torch.float32,
        "params_dtype": torch.float32,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": False,
        "bias_activation_fusion": False,
        "apply_rope_fusion": False,
        "tensor_model_parallel_size": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline_model_parallel_size": parallel_state.get_pipeline_model_parallel_world_size(),
        "expert_model_parallel_size": parallel_state.get_expert_model_parallel_world_size(),
        "expert_tensor_parallel_size": parallel_state.get_expert_tensor_parallel_world_size(),
    }
    return TransformerConfig(**{**small, **fields})


def moe_fields(num_experts: int = 4, top_k: int = 2, dispatcher: str = "alltoall") -> dict[str, Any]:
    """Return the fields of `config` that make its MLPs mixtures of `SequentialMLP` experts."""
    return {
        "num_moe_experts": num_experts,
        "moe_router_topk": top_k,
        "moe_ffn_hidden_size": 64,
        "moe_token_dispatcher_type": dispatcher,
        "moe_router_load_balancing_type": "none",
    }


class ShardedRMSNorm(nn.RMSNorm):
    """Megatron-core's own wrapper of torch's norms refuses sequence parallelism, for which this one is marked."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


def gpt(
    config: Any, tied: bool = False, vocabulary: int = VOCABULARY, tokens: int = TOKENS, **fields: Any
) -> nn.Module:
    """Return this rank's part of a `GPTModel` of the local layer spec, with rotary positions.

    Args:
        config: From `config`.
        tied: The output layer uses the embedding's weight.
        vocabulary: Number of tokens that the model knows.
        tokens: Longest sequence.
        fields: More arguments of `GPTModel`, and of its layer spec `qk_layernorm` and `multi_latent_attention`.
    """
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

    spec: Any = get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts,
        moe_grouped_gemm=False,
        normalization=config.normalization,
        qk_layernorm=fields.pop("qk_layernorm", False),
        multi_latent_attention=fields.pop("multi_latent_attention", False),
    )
    if config.sequence_parallel:
        spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = ShardedRMSNorm
        layers = config.num_layers // config.pipeline_model_parallel_size
        spec = TransformerBlockSubmodules(layer_specs=[spec] * layers, layer_norm=ShardedRMSNorm)
    return GPTModel(
        config,
        spec,
        vocab_size=vocabulary,
        max_sequence_length=tokens,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=tied,
        position_embedding_type="rope",
        **fields,
    )


def batch(
    rows: int = 2, tokens: int = TOKENS, vocabulary: int = VOCABULARY, seed: int = 3
) -> dict[str, Tensor]:
    """Return arguments of a `GPTModel`'s forward: random tokens, the same on every rank, and what follows each."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (rows, tokens), generator=generator)
    return {
        "input_ids": ids,
        "position_ids": torch.arange(tokens).expand(rows, tokens).contiguous(),
        "attention_mask": torch.ones(tokens, tokens).triu(1).bool()[None, None],  # True where nothing is seen
        "labels": ids.roll(-1, 1),
    }


def run_schedule(
    model: nn.Module, batches: Sequence[dict[str, Tensor]], forward_only: bool = True
) -> list[float]:
    """Run batches through Megatron-core's schedule of the layout; return their losses, on the last stage."""
    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

    def loss_of(output: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return output.mean(), {"loss": output.mean().detach().clone()}  # what is returned is divided in place

    def step(iterator: Any, stage: nn.Module) -> Any:
        return stage(**next(iterator)), loss_of

    rows, tokens = batches[0]["input_ids"].shape
    outputs = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iter(batches),
        model=[model],
        num_microbatches=len(batches),
        seq_length=tokens,
        micro_batch_size=rows,
        forward_only=forward_only,
    )
    return [float(output["loss"]) for output in outputs]
