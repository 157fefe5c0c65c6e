"""Who feeds whom: dataflow between layers."""

from octavo.core.graph.dataflow import InputRecorder
from octavo.core.graph.groups import shared_input_groups

__all__ = ["InputRecorder", "shared_input_groups"]
