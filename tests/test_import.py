"""`import torch_ire` is quick, light and never fails; `show_config()` says what is in use."""

from __future__ import annotations

import statistics

import pytest
import torch

import torch_ire
from layout import pyproject
from processes import run_python
from torch_ire import configuration

# The finder raises for torch_ire._C as a missing file or an incompatible binary would.
BLOCK_NATIVE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name == "torch_ire._C":
            raise ImportError("blocked by the test")
sys.meta_path.insert(0, Block())
"""


def run(program: str, *, timed: bool = False) -> str:
    # where coverage is measured it is in the child as well, and its time with it
    return run_python(program, without=("COV",) if timed else ())


def test_import_is_quick() -> None:
    """Under 0.3 s of processor time on top of torch, however loaded the machine; the median of five fresh processes."""
    program = "import torch, time; t = time.process_time(); import torch_ire; print(time.process_time() - t)"
    assert statistics.median(float(run(program, timed=True)) for _ in range(5)) < 0.3


def test_nothing_heavy_is_imported() -> None:
    program = "import torch, sys; before = set(sys.modules); import torch_ire; print(*(set(sys.modules) - before))"
    new = {name.split(".")[0] for name in run(program).split()}
    assert "torch_ire" in new
    heavy = {"matplotlib", "scipy", "sklearn", "rich", "numpy", "pandas", "triton", "torchvision"}
    assert not new & (heavy | {"transformers", "accelerate", "lightning", "tensorboard", "safetensors"})


@pytest.mark.parametrize(("module", "library"), [("hugging_face", "transformers"), ("lightning", "lightning")])
def test_an_integration_without_its_trainer_names_the_extra(module: str, library: str) -> None:
    program = f"""
import sys
sys.modules[{library!r}] = None  # as if it were not installed
import torch_ire.integrations
try:
    import torch_ire.integrations.{module}
except ImportError as error:
    print(error)
"""
    expected = f"torch_ire.integrations.{module} needs {library}: pip install 'torch-ire[trainers]'"
    assert run(program).strip() == expected


def test_reference_takes_over_with_one_warning_where_the_native_library_does_not_load() -> None:
    program = (
        BLOCK_NATIVE
        + """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch_ire, torch
ours = [w for w in caught if "torch_ire" in str(w.message)]
assert len(ours) == 1, caught
assert ours[0].category is RuntimeWarning, ours[0].category
assert "blocked by the test" in str(ours[0].message)
params, grads = [torch.ones(3)], [torch.tensor([1.0, -1.0, 2.0])]
state = [[torch.zeros(3)], [torch.zeros(3)], [torch.tensor(0.0)]]
with warnings.catch_warnings():
    warnings.simplefilter("error")
    torch_ire.ops.fused_adamw_flat_(
        params, grads, *state, lr=0.1, beta1=0.9, beta2=0.999, eps=0.0, weight_decay=0.0, kappa=0.0
    )
torch.testing.assert_close(params[0], torch.tensor([0.9, 1.1, 0.9]))
torch_ire.show_config()
"""
    )
    printed = run(program)
    assert "not loaded: blocked by the test" in printed
    assert "implementation on cpu   reference" in printed


def test_version_is_that_of_pyproject() -> None:
    assert torch_ire.__version__ == pyproject()["project"]["version"]
    assert torch_ire._native.module.version == torch_ire.__version__


def test_unknown_attributes_are_missing() -> None:
    with pytest.raises(AttributeError, match="module 'torch_ire' has no attribute 'no_such_name'"):
        _ = torch_ire.no_such_name


def test_version_without_a_distribution_comes_from_the_native_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise configuration.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(configuration.importlib.metadata, "version", missing)
    assert torch_ire.__version__ == torch_ire._native.module.version
    monkeypatch.setattr(torch_ire._native, "module", None)
    assert torch_ire.__version__ == "unknown"


def test_show_config_prints_the_facts(capsys: pytest.CaptureFixture[str]) -> None:
    torch_ire.show_config()
    printed = capsys.readouterr().out.splitlines()
    facts = configuration.facts()
    assert [line.split("  ")[0] for line in printed] == list(facts)
    assert all(line.endswith(text) for line, text in zip(printed, facts.values(), strict=True))
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == str(torch.get_num_threads())
    assert facts["implementation on cpu"] == "native"
    assert facts["native library"] == torch_ire._native.module.__file__


def test_show_config_names_the_cuda_build(monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        with_cuda, cuda_version, cuda_architectures = True, "13.0", "80;90"
        compiler, version, __file__ = "gcc", "", "file"

    monkeypatch.setattr(torch_ire._native, "module", Module())
    assert configuration.facts()["CUDA kernels"] == "built with CUDA 13.0 for 80;90"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert configuration.facts()["implementation on cuda"] == "native"
    monkeypatch.setattr(Module, "with_cuda", False)
    assert configuration.facts()["CUDA kernels"] == "not built"
    assert configuration.facts()["implementation on cuda"] == "reference"
