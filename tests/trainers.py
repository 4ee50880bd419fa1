"""Skips tests whose trainer is not installed; the extra `test` installs all of them."""

from __future__ import annotations

import importlib.util

import pytest


def need(library: str) -> None:
    """Skips the test, or the module that calls this at its top, if a library is not installed; a broken one fails."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}, of the extra `trainers`", allow_module_level=True)
