"""The build and the implementation in use, for bug reports."""

from __future__ import annotations

import importlib.metadata

import torch

from torch_ire import _native


def version() -> str:
    """The version of the installed distribution; of the native library if a checkout was built in place."""
    try:
        return importlib.metadata.version("torch-ire")
    except importlib.metadata.PackageNotFoundError:
        return str(_native.module.version) if _native.module is not None else "unknown"


def facts() -> dict[str, str]:
    """The lines of :func:`show_config`, by name.

    Returns:
        Text for each of ``torch-ire``, ``torch``, ``native library``, ``compiler``, ``CUDA kernels``, ``threads``, and
        ``implementation on cpu`` and ``on cuda``.

    Example:
        >>> from torch_ire import configuration
        >>> sorted(configuration.facts())[:2]
        ['CUDA kernels', 'compiler']
    """
    native = _native.module
    lines = {"torch-ire": version(), "torch": torch.__version__}
    if native is None:
        lines["native library"] = f"not loaded: {_native.error}"
    else:
        lines["native library"] = str(native.__file__)
        lines["compiler"] = native.compiler
        lines["CUDA kernels"] = (
            f"built with CUDA {native.cuda_version} for {native.cuda_architectures}"
            if native.with_cuda
            else "not built"
        )
    lines["threads"] = str(torch.get_num_threads())
    lines["implementation on cpu"] = _implementation("cpu")
    lines["implementation on cuda"] = _implementation("cuda") if torch.cuda.is_available() else "none: no CUDA device"
    return lines


def show_config() -> None:
    """Prints how the library was built and which implementation is in use: the text for a bug report.

    Example:
        >>> import torch_ire
        >>> torch_ire.show_config()  # doctest: +ELLIPSIS
        torch-ire               ...
    """
    lines = facts()
    width = max(map(len, lines)) + 2
    print("\n".join(f"{name:<{width}}{text}" for name, text in lines.items()))


def _implementation(device: str) -> str:
    return "native" if _native.available(torch.device(device)) else "reference"


__all__ = ["facts", "show_config", "version"]
