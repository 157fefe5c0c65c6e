"""A rank is killed while a quantized Megatron-core model is saved over an older one."""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":  # saving starts processes, which import this file
    import multiprocessing
    import shutil
    import time

    from megatron.core import dist_checkpointing

    import octavo
    from helpers import megatron_cpu as megatron
    from launched.common import FOLDER, joined
    from octavo.adapters import megatron_core

    def die(*_: object, **__: object) -> None:
        for (
            child
        ) in multiprocessing.active_children():  # of Megatron-core's saving, which would outlive the rank
            child.kill()
        (FOLDER / "died").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)

    with joined() as rank:
        megatron.on_cpu()
        megatron.lay_out(tp=2)
        model = octavo.quantize(
            megatron.gpt(megatron.config()), octavo.FP8_DEFAULT_CFG, [megatron.batch()], quiet=True
        )
        megatron_core.save(model, FOLDER / "saved")
        if rank == 0:
            shutil.copytree(FOLDER / "saved", FOLDER / "before")
        else:
            dist_checkpointing.save = die
        megatron_core.save(model, FOLDER / "saved", overwrite=True)
