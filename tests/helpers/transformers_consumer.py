"""A program of its own: what transformers with compressed-tensors makes of checkpoints, where octavo is not importable.

    python -I transformers_consumer.py CHECKPOINT...

Writes `consumed.safetensors` into each checkpoint: `logits` of the tokens 3, 4, … 26 in two rows, and the weights of
its linear layers after that forward pass; and `consumed.json`: the keys that were missing or unexpected.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path


class NoOctavo:
    """Refuses to find octavo."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == "octavo":
            raise ImportError("octavo is not to be imported here")


sys.meta_path.insert(0, NoOctavo)  # type: ignore[arg-type]
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoModelForCausalLM, logging  # noqa: E402

logging.set_verbosity_error()
logging.disable_progress_bar()


def consume(folder: Path) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    with torch.no_grad():
        logits = model.eval()(torch.arange(3, 27).reshape(2, 12)).logits
    weights = {
        f"{name}.weight": module.weight.detach().clone().contiguous()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    save_file({**weights, "logits": logits.contiguous()}, folder / "consumed.safetensors")
    keys = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys")}
    (folder / "consumed.json").write_text(json.dumps(keys))


for checkpoint in sys.argv[1:]:
    try:
        consume(Path(checkpoint))
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
        Path(checkpoint, "consumed.json").write_text(
            json.dumps({"error": f"{type(error).__name__}: {error}"})
        )
