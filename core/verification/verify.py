"""`verify_checkpoint`: what a reader would find wrong in a quantized checkpoint's files."""

from __future__ import annotations

from pathlib import Path

from octavo.core.errors import CheckpointError
from octavo.core.model.targets import check_target
from octavo.core.plugins import plugins
from octavo.core.verification.finding import Finding, error
from octavo.core.verification.stored_files import EXPORT_AGAIN


def verify_checkpoint(directory: str | Path, consumer: str, trust_remote_code: bool = False) -> list[Finding]:
    """Return what an engine's reader would find wrong in the files of a checkpoint; the engine is not needed.

    Names, dtypes, shapes and values of every tensor, scales that joined layers must share, and the metadata are held
    to the rules of that reader, which tables beside each dialect's verifier state with their evidence. Kernels are not
    run: that a checkpoint has no findings says that the reader takes every tensor for what it is.

    Args:
        directory: A quantized checkpoint.
        consumer: `vllm`, `sglang`, `trtllm` or `transformers`.
        trust_remote_code: Run modelling code that the checkpoint brings, to know its tensors.

    Returns:
        The findings, errors first; empty where nothing is wrong.

    Raises:
        ConfigError: the consumer is unknown, or the checkpoint brings code and `trust_remote_code` is off.
        CheckpointError: the folder holds no quantized checkpoint of a dialect that is verified.
    """
    directory = Path(directory)
    check_target(consumer)
    verifiers = plugins().verifiers()
    verifier = next((v for v in verifiers if v.detect(directory)), None)
    if verifier is None:
        known = ", ".join(v.name for v in verifiers)
        raise CheckpointError(
            f"{directory} is no quantized checkpoint of a dialect that is verified; known: {known}"
        )
    findings: list[Finding] = []
    try:
        for finding in verifier.verify(directory, consumer, trust_remote_code):
            findings.append(finding)
    except CheckpointError as refusal:
        findings.append(error(str(directory), str(refusal), "a whole checkpoint", EXPORT_AGAIN))
    return sorted(findings, key=lambda finding: finding.severity != "error")
