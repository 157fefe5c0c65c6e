"""Names of modules follow from those of their parameters."""

from __future__ import annotations

from octavo.core.model.module_names import module_names


def test_modules_are_renamed_as_their_parameters_are() -> None:
    names = {
        "lm_head.weight": "embed_out.weight",
        "model.layers.0.attention.k_proj.weight": "gpt.layers.0.attention.k_proj.weight",
        "model.norm.gamma": "gpt.norm.weight",
        "scale": "scale",
    }

    assert module_names(names) == {
        "lm_head": "embed_out",
        "model.layers.0.attention.k_proj": "gpt.layers.0.attention.k_proj",
        "model.layers.0.attention": "gpt.layers.0.attention",
        "model.layers.0": "gpt.layers.0",
        "model.layers": "gpt.layers",
        "model": "gpt",
        "": "",
    }


def test_a_prefix_that_only_checkpoints_have() -> None:
    assert module_names({"h.0.weight": "transformer.h.0.weight"}) == {
        "h.0": "transformer.h.0",
        "h": "transformer.h",
        "": "transformer",
    }
