"""found_nonfinite: every number that is infinite or NaN is found wherever it stands, and no other one is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from step_lists import CHUNK, Lists
from tolerances import DTYPES
from torch_ire import ops, reference

INTEGERS = {
    torch.float32: torch.int32,
    torch.float64: torch.int64,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}


def found(tensors: list[Tensor]) -> bool:
    answers = {float(functions.found_nonfinite(tensors)) for functions in (ops, reference)}
    assert len(answers) == 1
    assert answers <= {0.0, 1.0}
    return answers == {1.0}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf, -torch.inf])
def test_one_element_anywhere_is_found(device, dtype, bad):
    tensors = Lists(dtype, device).normal()
    assert not found(tensors)
    for tensor in tensors:
        for position in sorted({0, tensor.numel() // 2, tensor.numel() - 1}) if tensor.numel() else ():
            flat = torch.as_strided(tensor, (tensor.numel(),), (1,))
            before = flat[position].clone()
            flat[position] = bad
            assert found(tensors)
            flat[position] = before
    assert not found(tensors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_position_of_short_tensors_is_read(device, dtype):
    for numel in (*range(1, 20), 67):
        for position in range(numel):
            values = torch.zeros(numel + 1, dtype=dtype, device=device)
            values[position] = torch.inf
            assert found([values[:numel]])
            assert not found([values[position + 1 :]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_numbers_are_finite(device, dtype):
    """Their squares, and sums of squares, are not."""
    info = torch.finfo(dtype)
    values = torch.tensor([info.max, info.min, info.tiny, -0.0], dtype=dtype, device=device)
    assert not found([values.repeat(CHUNK), values])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_value_of_the_half_formats(device, dtype):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype).to(device)
    for finite in (True, False):
        chosen = values[values.isfinite() == finite]
        assert found([chosen]) != finite
        assert all(found([chosen[i : i + 1]]) != finite for i in range(0, chosen.numel(), 997))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_of_every_payload(device, dtype):
    infinity = int(torch.tensor(torch.inf, dtype=dtype).view(INTEGERS[dtype]))
    for payload in (1, 2, 77):
        nan = torch.tensor([infinity + payload], dtype=INTEGERS[dtype]).view(dtype).to(device)
        assert nan.isnan()
        assert found([nan])


def test_many_tensors_and_an_answer_on_their_device(device):
    tensors = [torch.zeros(3, device=device) for _ in range(2500)]
    answer = ops.found_nonfinite(tensors)
    assert (answer.shape, answer.dtype, answer.device.type) == ((), torch.float32, device.type)
    assert not answer
    tensors[-1][1] = torch.nan
    assert ops.found_nonfinite(tensors)


def test_an_empty_list_and_empty_tensors_have_nothing():
    assert ops.found_nonfinite([]) == 0
    assert ops.found_nonfinite([torch.zeros(0)]) == 0


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            [torch.ones(3, dtype=torch.int64)],
            r"tensors\[0\]: expected float32, float64, bfloat16 or float16, got int64",
        ),
        ([torch.ones(3), torch.ones(3).double()], r"tensors\[1\]: expected float32 as tensors\[0\], got float64"),
        ([torch.ones(6)[::2]], r"tensors\[0\]: expected a dense tensor"),
    ],
)
def test_messages(tensors, message):
    with pytest.raises(RuntimeError, match=f"torch_ire::found_nonfinite: {message}"):
        ops.found_nonfinite(tensors)
