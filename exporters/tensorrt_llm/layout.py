"""Layout: over how many ranks a TensorRT-LLM checkpoint is divided, and which models allow that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from octavo.core.errors import CheckpointError, ExportError


@dataclass(frozen=True)
class Layout:
    """Sizes of the groups of ranks; rank = stage · tp_size + its place in the stage.

    Attributes:
        tp_size: Ranks that divide each layer (tensor parallel).
        pp_size: Stages, each of which has equally many consecutive layers (pipeline parallel).
        moe_ep_size: Into how many groups the `tp_size` ranks divide the experts of a layer (expert parallel); each
            group's ranks divide every expert of theirs.
    """

    tp_size: int
    pp_size: int
    moe_ep_size: int = 1

    def __post_init__(self) -> None:
        sizes = (self.tp_size, self.pp_size, self.moe_ep_size)
        if any(type(size) is not int or size < 1 for size in sizes):
            raise ExportError(f"sizes of a layout are whole numbers, at least 1; found {self}")
        if self.tp_size % self.moe_ep_size:
            raise ExportError(
                f"expert-parallel groups are made of tensor-parallel ranks, so the size of the first must divide that "
                f"of the second; found ep {self.moe_ep_size} and tp {self.tp_size}"
            )

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Layout:
        """Return the layout that the `mapping` of a config.json names.

        Raises:
            CheckpointError: it names none, or one with context-parallel ranks.
        """
        mapping = config.get("mapping", {})
        if not isinstance(mapping, Mapping):
            raise CheckpointError(f"config.json must have a mapping of sizes, found {mapping!r}")
        sizes = {key: mapping.get(key, 1) for key in ("tp_size", "pp_size", "cp_size", "moe_ep_size")}
        wrong = {
            key: size for key, size in sizes.items() if type(size) is not int or (size < 1 and size != -1)
        }
        if wrong or sizes["cp_size"] != 1:
            raise CheckpointError(
                f"mapping of config.json must hold whole numbers, at least 1, and cp_size 1; found {dict(mapping)}"
            )
        try:
            layout = cls(sizes["tp_size"], sizes["pp_size"], max(sizes["moe_ep_size"], 1))  # -1 stands for 1
        except ExportError as error:
            raise CheckpointError(f"mapping of config.json: {error}") from error
        if mapping.get("world_size", 1) != layout.world_size:
            raise CheckpointError(
                f"mapping of config.json says world_size {mapping.get('world_size', 1)!r}, which is not "
                f"tp_size {layout.tp_size} · pp_size {layout.pp_size}"
            )
        return layout

    @property
    def world_size(self) -> int:
        """Number of ranks, and of files."""
        return self.tp_size * self.pp_size

    @property
    def moe_tp_size(self) -> int:
        """Ranks that divide one expert."""
        return self.tp_size // self.moe_ep_size

    def stage(self, stage: int) -> range:
        """Return the ranks of a stage."""
        return range(stage * self.tp_size, (stage + 1) * self.tp_size)

    def mapping(self, *, experts: bool) -> dict[str, int]:
        """Return the `mapping` of config.json; the sizes that concern experts are written where there are some."""
        sizes = {"world_size": self.world_size, "tp_size": self.tp_size, "pp_size": self.pp_size}
        if experts:
            sizes |= {"moe_tp_size": self.moe_tp_size, "moe_ep_size": self.moe_ep_size}
        return sizes

    def apply_to(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return config.json of a model in this layout; `config` describes the same model in any other."""
        written = {**config, "mapping": self.mapping(experts=num_experts(config) > 0)}
        if "rank" in config:
            written["rank"] = self.world_size - 1  # the field's writers leave the last rank's number there
        if config.get("share_embedding_table") and not self.shares_embedding(config):
            written["share_embedding_table"] = False
        return written

    def shares_embedding(self, config: Mapping[str, Any]) -> bool:
        """Whether each rank's rows of the token embedding are those that its head needs."""
        is_divided = config.get("use_parallel_embedding", False) and not config.get(
            "embedding_sharding_dim", 0
        )
        return self.pp_size == 1 and (self.tp_size == 1 or is_divided)

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuse a model that cannot be divided so.

        Args:
            config: config.json of the model, in any layout.

        Raises:
            CheckpointError: `config` lacks a size.
            ExportError: ranks would not get equal parts; each such size is named.
        """
        problems = list(self._problems(config))
        if problems:
            raise ExportError(
                f"the model cannot be divided over tp {self.tp_size}, pp {self.pp_size}, ep {self.moe_ep_size}: "
                + "; ".join(problems)
            )

    def _problems(self, config: Mapping[str, Any]) -> Iterator[str]:
        if (layers := size_of(config, "num_hidden_layers")) % self.pp_size:
            yield f"{layers} layers are not divisible by {self.pp_size} stages"
        heads = kv_heads(config)
        if heads % self.tp_size and self.tp_size % heads:
            yield f"{heads} key/value heads can be neither divided over nor repeated for {self.tp_size} ranks"
        if (experts := num_experts(config)) % self.moe_ep_size:
            yield f"{experts} experts are not divisible by {self.moe_ep_size} groups"
        if not experts and self.moe_ep_size > 1:
            yield f"it has no experts for {self.moe_ep_size} groups"
        if config.get("share_embedding_table") and self.pp_size == 1 and not self.shares_embedding(config):
            yield "its head is the token embedding, which every rank has whole (use_parallel_embedding is off)"
        block = (config.get("quantization") or {}).get("group_size") or 1
        for what, size, ranks, multiple in self._divided_sizes(config, block):
            if size % ranks:
                yield f"{what} {size} is not divisible by {ranks} ranks"
            elif size // ranks % multiple:
                yield f"{what} {size} over {ranks} ranks is {size // ranks}, no multiple of the block {multiple}"

    def _divided_sizes(self, config: Mapping[str, Any], block: int) -> Iterator[tuple[str, int, int, int]]:
        """Yield (name, size, over how many ranks, of what each rank's part must be a multiple)."""
        heads = size_of(config, "num_attention_heads")
        yield "num_attention_heads", heads, self.tp_size, 1
        if heads % self.tp_size == 0:
            yield "the length of all heads", heads * head_size(config), self.tp_size, block
        if config.get("use_parallel_embedding") and config.get("embedding_sharding_dim", 0) == 1:
            yield "hidden_size", size_of(config, "hidden_size"), self.tp_size, 1
        of_experts = "moe_intermediate_size" if "moe_intermediate_size" in config else "intermediate_size"
        for key in ("intermediate_size", "moe_intermediate_size", "moe_shared_expert_intermediate_size"):
            if config.get(key):
                is_expert = num_experts(config) > 0 and key == of_experts
                yield key, size_of(config, key), self.moe_tp_size if is_expert else self.tp_size, block


def size_of(config: Mapping[str, Any], key: str) -> int:
    """Return a size that config.json must have.

    Raises:
        CheckpointError: it is absent or no whole number, at least 1.
    """
    size = config.get(key)
    if type(size) is not int or size < 1:
        raise CheckpointError(f"config.json must say {key}, a whole number, at least 1; found {size!r}")
    return size


def kv_heads(config: Mapping[str, Any]) -> int:
    """Return the number of key/value heads of the whole model."""
    key = "num_attention_heads" if config.get("num_key_value_heads") is None else "num_key_value_heads"
    return size_of(config, key)


def head_size(config: Mapping[str, Any]) -> int:
    """Return the length of a head."""
    if config.get("head_size") is not None:
        return size_of(config, "head_size")
    return size_of(config, "hidden_size") // size_of(config, "num_attention_heads")


def num_experts(config: Mapping[str, Any]) -> int:
    """Return how many experts a layer has in all; 0 for a model without."""
    experts = (config.get("moe") or {}).get("num_experts", config.get("moe_num_experts"))
    return experts or 0
