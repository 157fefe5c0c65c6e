"""What a distillation consists of, as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from octavo.core.errors import ConfigError


class HiddenLoss(BaseModel):
    """How far outputs of the student's modules are from those of the teacher's.

    Attributes:
        layers: {name of a student's module: name of the teacher's}; a tuple's first tensor counts.
        kind: `mse`: mean squared difference. `relative`: the same over the teacher's mean square. `cosine`: one minus
            the cosine, of each token.
        weight: Factor of their mean in the sum of all losses.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    layers: Mapping[str, str] = Field(min_length=1)
    kind: Literal["mse", "relative", "cosine"] = "relative"
    weight: float = Field(default=1.0, gt=0)


class DistillConfig(BaseModel):
    """The losses of a distillation.

    Attributes:
        temperature: Divides the logits of both; see `kl_divergence`.
        logits_weight: Factor of the divergence of logits; 0 leaves it out.
        labels_weight: Factor of the cross-entropy of the next token; 0 leaves it out.
        hidden: Losses of what modules inside compute.
        balance: `static`: weights are factors. `match`: first, each other loss is scaled to the size that the
            divergence of logits has at this step (its gradient stays its own), so that weights are shares.
        chunk_tokens: Tokens whose probabilities are in memory at once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    temperature: float = Field(default=1.0, gt=0)
    logits_weight: float = Field(default=1.0, ge=0)
    labels_weight: float = Field(default=0.0, ge=0)
    hidden: tuple[HiddenLoss, ...] = ()
    balance: Literal["static", "match"] = "static"
    chunk_tokens: int = Field(default=1024, ge=1)


def distill_config(data: DistillConfig | Mapping[str, Any] | None) -> DistillConfig:
    """Return the config that `data` describes.

    Raises:
        ConfigError: a field is unknown or has a wrong value; or no loss is left, or nothing to match.
    """
    if isinstance(data, DistillConfig):
        config = data
    else:
        try:
            config = DistillConfig.model_validate(dict(data or {}))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"distillation: {where}: {first['msg']}, found {first['input']!r}; fields are "
                f"{', '.join(DistillConfig.model_fields)}"
            ) from error
    if not (config.logits_weight or config.labels_weight or config.hidden):
        raise ConfigError("distillation: no loss is left; give logits_weight, labels_weight or hidden")
    if config.balance == "match" and not config.logits_weight:
        raise ConfigError("distillation: balance='match' scales to the loss of logits, found logits_weight=0")
    return config
