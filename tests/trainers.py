"""Which trainers there are; the extra `test` installs all of them."""

from __future__ import annotations

import importlib.util

import pytest


def need(library: str) -> None:
    """Skips a test, or the module that calls this at its top, where a library is not installed; a broken one fails."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}, of the extra `trainers`", allow_module_level=True)
