"""Imports matplotlib on the first plot."""

from __future__ import annotations

from typing import Any

__all__ = ["new_axes"]


def new_axes(ax: Any = None) -> Any:
    """The given matplotlib axes, or new ones.

    Raises:
        ImportError: if matplotlib is missing; the message says how to install it.
    """
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
        from matplotlib.figure import Figure
    except ImportError as failure:
        raise ImportError("plotting needs matplotlib: pip install matplotlib") from failure
    figure: Figure = plt.figure(figsize=(6.0, 4.0), layout="constrained")
    return figure.add_subplot()
