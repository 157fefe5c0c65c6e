"""The one plugin manager, and a typed method for each hook."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from octavo.core.errors import FOREIGN_FAILURES, CheckpointError, PluginError, nearest
from octavo.core.modules import QuantAttention, QuantExperts, QuantModule

if TYPE_CHECKING:  # what is named in signatures only is not imported with `octavo`
    import pluggy

    from octavo.core.model.checkpoint_layout import CheckpointLayout
    from octavo.core.model.description import ModelDescription
    from octavo.core.model.exporter import Exporter
    from octavo.core.ops.kernels import Kernels
    from octavo.core.plugins.hookspecs import DataRequest
    from octavo.core.plugins.loading import PluginStatus
    from octavo.core.ranks.rank_groups import RankGroups
    from octavo.core.verification.verifier import Verifier


class Plugins:
    """All loaded plugins; one method per hook, documented in `hookspecs`."""

    def __init__(self, manager: pluggy.PluginManager, statuses: list[PluginStatus]) -> None:
        self.statuses = statuses
        self._hook = manager.hook
        self._exporters = {name: key for part in self._hook.exporters() for name, key in part.items()}
        self._kernels = {name: key for part in self._hook.kernels() for name, key in part.items()}
        self._verifiers = {name: key for part in self._hook.verifiers() for name, key in part.items()}

    def calibration_algorithms(self) -> dict[str, str]:
        """Return what the hook `calibration_algorithms` returned for all plugins: {method: `module:Class`}."""
        return {name: key for part in self._hook.calibration_algorithms() for name, key in part.items()}

    def exporter_names(self) -> list[str]:
        """Return the names of the exporters that plugins brought."""
        return sorted(self._exporters)

    def exporter(self, name: str) -> Exporter:
        """Return the exporter called `name`.

        Raises:
            PluginError: there is none, or its plugin's module cannot be imported.
        """
        if name not in self._exporters:
            known = self.exporter_names()
            raise PluginError(f"no exporter {name!r}; known: {', '.join(known)}.{nearest(name, known)}")
        return cast("Exporter", self._loaded("exporter", name, self._exporters[name]))

    def verifiers(self) -> list[Verifier]:
        """Return the verifiers that plugins brought, by name.

        Raises:
            PluginError: a plugin's module cannot be imported.
        """
        return [cast("Verifier", self._loaded("verifier", *item)) for item in sorted(self._verifiers.items())]

    def kernels(self) -> list[Kernels]:
        """Return the kernels that plugins brought, by name.

        Raises:
            PluginError: a plugin's module cannot be imported.
        """
        return [cast("Kernels", self._loaded("kernels", *item)) for item in sorted(self._kernels.items())]

    def exporter_for(self, directory: Path) -> Exporter | None:
        """Return the exporter that reads the checkpoint in `directory`, or None when it is not quantized."""
        return next((e for e in map(self.exporter, self.exporter_names()) if e.detect(directory)), None)

    def check_unquantized(self, directory: Path) -> None:
        """Refuse a folder that holds codes where weights are expected.

        Raises:
            CheckpointError: an exporter wrote it.
        """
        exporter = self.exporter_for(directory)
        if exporter is not None:
            raise CheckpointError(
                f"{directory} is quantized already ({exporter.name}): its weights are codes; expected the original "
                "model. octavo.load_quantized reads it, `octavo eval` and `octavo inspect` do, too"
            )

    def check_model(self, model: nn.Module) -> None:
        """Call the hook `check_model`."""
        self._hook.check_model(model=model)

    def describe_model(self, model: nn.Module) -> ModelDescription | None:
        """Call the hook `describe_model`."""
        return cast("ModelDescription | None", self._hook.describe_model(model=model))

    def tiny_inputs(self, model: nn.Module) -> Mapping[str, Any] | None:
        """Call the hook `tiny_inputs`; a part of a model knows its own."""
        own = getattr(model, "tiny_inputs", None)
        if callable(own):
            return cast("Mapping[str, Any] | None", own())
        return cast("Mapping[str, Any] | None", self._hook.tiny_inputs(model=model))

    def attention_layers(self, model: nn.Module) -> Mapping[str, nn.Module]:
        """Call the hook `attention_layers`."""
        return cast("Mapping[str, nn.Module]", self._hook.attention_layers(model=model) or {})

    def left_out_attention(self, model: nn.Module) -> Mapping[str, str]:
        """Call the hook `left_out_attention`."""
        return cast("Mapping[str, str]", self._hook.left_out_attention(model=model) or {})

    def rank_groups(self, model: nn.Module) -> Mapping[str, RankGroups]:
        """Call the hook `rank_groups`."""
        return cast("Mapping[str, RankGroups]", self._hook.rank_groups(model=model) or {})

    def prepare_model(self, model: nn.Module) -> None:
        """Call the hook `prepare_model`."""
        self._hook.prepare_model(model=model)

    def unprepare_model(self, model: nn.Module) -> None:
        """Call the hook `unprepare_model`."""
        self._hook.unprepare_model(model=model)

    def gathered_parameters(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None] | None:
        """Call the hook `gathered_parameters`."""
        context = self._hook.gathered_parameters(parameters=parameters)
        return cast("AbstractContextManager[None] | None", context)

    def weights_packed(self, model: nn.Module) -> None:
        """Call the hook `weights_packed`."""
        self._hook.weights_packed(model=model)

    def weights_unpacked(self, model: nn.Module) -> None:
        """Call the hook `weights_unpacked`."""
        self._hook.weights_unpacked(model=model)

    def mixins(self, model: nn.Module) -> dict[str, type[QuantModule]]:
        """Return {layer name: mixin} of all layers that adapters make quantizable: attention and stacked experts."""
        return {**dict.fromkeys(self.attention_layers(model), QuantAttention), **self.expert_layers(model)}

    def expert_layers(self, model: nn.Module) -> Mapping[str, type[QuantExperts]]:
        """Call the hook `expert_layers`."""
        return cast("Mapping[str, type[QuantExperts]]", self._hook.expert_layers(model=model) or {})

    def checkpoint_layout(self, model: nn.Module, names: Sequence[str]) -> CheckpointLayout:
        """Call the hook `checkpoint_layout`; without an answer, names stay."""
        from octavo.core.model.checkpoint_layout import CheckpointLayout

        answer = self._hook.checkpoint_layout(model=model, names=names)
        return cast(CheckpointLayout, answer or CheckpointLayout({name: name for name in names}))

    def write_companions(self, model: nn.Module, directory: Path, tokenizer: Any, dtype: torch.dtype) -> bool:
        """Call the hook `write_companions`; return whether an adapter did."""
        answer = self._hook.write_companions(
            model=model, directory=directory, tokenizer=tokenizer, dtype=dtype
        )
        return bool(answer)

    def load_model(
        self, path: Path, dtype: torch.dtype | None, trust_remote_code: bool, quiet: bool = False
    ) -> nn.Module:
        """Call the hook `load_model`."""
        model = self._hook.load_model(
            path=path, dtype=dtype, trust_remote_code=trust_remote_code, quiet=quiet
        )
        return cast(nn.Module, self._answered(model, "load", path))

    def build_model(self, directory: Path, dtype: torch.dtype | None, trust_remote_code: bool) -> nn.Module:
        """Call the hook `build_model`."""
        model = self._hook.build_model(directory=directory, dtype=dtype, trust_remote_code=trust_remote_code)
        return cast(nn.Module, self._answered(model, "build", directory))

    def build_unloaded(
        self, directory: Path, names: Collection[str], dtype: torch.dtype | None, trust_remote_code: bool
    ) -> nn.Module:
        """Call the hook `build_unloaded`."""
        model = self._hook.build_unloaded(
            directory=directory, names=names, dtype=dtype, trust_remote_code=trust_remote_code
        )
        return cast(nn.Module, self._answered(model, "stream", directory))

    def fill_buffers(self, model: nn.Module) -> bool:
        """Call the hook `fill_buffers`; return whether an adapter did."""
        return bool(self._hook.fill_buffers(model=model))

    def load_tokenizer(self, path: Path, trust_remote_code: bool) -> Any:
        """Call the hook `load_tokenizer`."""
        tokenizer = self._hook.load_tokenizer(path=path, trust_remote_code=trust_remote_code)
        return self._answered(tokenizer, "load the tokenizer of", path)

    def text_batches(self, tokenizer: Any, request: DataRequest) -> list[dict[str, torch.Tensor]]:
        """Call the hook `text_batches`."""
        batches = self._hook.text_batches(tokenizer=tokenizer, request=request)
        return [dict(batch) for batch in self._answered(batches, "read", request.source)]

    def _loaded(self, kind: str, name: str, key: str) -> Any:
        """Return the object called `module:object`."""
        module, _, attribute = key.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except FOREIGN_FAILURES as error:
            raise PluginError(
                f"the {kind} {name!r} cannot be loaded from {key} ({type(error).__name__}: {error}); mend its plugin, "
                "or leave it out with OCTAVO_PLUGINS_OFF"
            ) from error

    def _answered(self, answer: Any, verb: str, what: object) -> Any:
        if answer is None and isinstance(what, Path) and not what.exists():
            raise CheckpointError(f"{what} does not exist; give the folder of a checkpoint")
        if answer is None:
            names = ", ".join(status.name for status in self.statuses if status.error is None)
            raise PluginError(
                f"no plugin can {verb} {what}; loaded: {names}. `octavo plugins` lists them all"
            )
        return answer


@lru_cache(maxsize=1)
def plugins() -> Plugins:
    """Return the loaded plugins; loads them the first time."""
    from octavo.core.plugins.loading import load_plugins  # on use, with pluggy and the hook specifications

    return Plugins(*load_plugins())
