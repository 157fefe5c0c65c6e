"""The decorators that declare and implement hooks."""

from __future__ import annotations

import pluggy

hookspec = pluggy.HookspecMarker("octavo")
hookimpl = pluggy.HookimplMarker("octavo")
