"""frozen_batch_norm: statistics stay, whatever runs inside, and every mode normalises as it does outside."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import torch_ire

X = torch.randn(16, 4, 6, generator=torch.Generator().manual_seed(0)) * 3 + 5


def networks() -> dict[str, nn.Module]:
    return {
        "BatchNorm": nn.BatchNorm1d(4),
        "cumulative average": nn.BatchNorm1d(4, momentum=None),
        "InstanceNorm": nn.InstanceNorm1d(4, track_running_stats=True),
        "nested modules": nn.Sequential(nn.Conv1d(4, 4, 1), nn.Sequential(nn.BatchNorm1d(4), nn.ReLU())),
        "a forward of its own": OwnForward(4),
    }


class OwnForward(nn.BatchNorm1d):
    """As libraries write it that follow the conventions and not the code of torch."""

    def forward(self, x: Tensor) -> Tensor:
        mean, var = (x.mean((0, 2)), x.var((0, 2), unbiased=False))
        if not self.training and self.running_mean is not None:
            mean, var = self.running_mean, self.running_var
        elif self.running_mean is not None:
            self.running_mean.lerp_(mean.detach(), 0.1)
            self.running_var.lerp_(var.detach(), 0.1)
            self.num_batches_tracked.add_(1)
        return (x - mean[:, None]) / (var[:, None] + self.eps).sqrt()


@pytest.fixture(params=networks())
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    network = networks()[request.param]
    network(X)  # statistics of one batch
    return network


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert list(ours) == list(theirs)
    for name, buffer in theirs.items():
        assert torch.equal(ours[name], buffer), name


def test_training_mode_uses_the_batch_and_leaves_the_statistics(model: nn.Module) -> None:
    before, expected = statistics(model), copy.deepcopy(model)(X + 1)
    with torch_ire.frozen_batch_norm(model):
        assert torch.equal(model(X + 1), expected)
    assert_same(statistics(model), before)
    model(X + 1)
    assert not torch.equal(next(iter(statistics(model).values())), next(iter(before.values())))


def test_eval_inside_uses_the_running_statistics(model: nn.Module) -> None:
    before, expected = statistics(model), copy.deepcopy(model).eval()(X + 1)
    with torch_ire.frozen_batch_norm(model):
        model(X + 1)
        model.eval()
        assert torch.equal(model(X + 1), expected)
        model.train()
        model(X + 1)
    assert_same(statistics(model), before)


def test_train_inside_leaves_the_statistics_of_a_model_that_was_in_eval_mode(model: nn.Module) -> None:
    before, expected = statistics(model), copy.deepcopy(model)(X + 1)
    model.eval()
    with torch_ire.frozen_batch_norm(model):
        model.train()
        assert torch.equal(model(X + 1), expected)
    assert_same(statistics(model), before)


def test_contexts_nest_and_the_outer_one_thaws(model: nn.Module) -> None:
    before, in_eval = statistics(model), copy.deepcopy(model).eval()(X)
    with torch_ire.frozen_batch_norm(model):
        with torch_ire.frozen_batch_norm(model):
            model(X + 1)
        model(X + 1)
        assert torch.equal(model.eval()(X), in_eval)
        model.train()
    assert_same(statistics(model), before)
    twin = copy.deepcopy(model)
    model(X + 2)
    twin(X + 2)
    assert_same(statistics(model), statistics(twin))
    assert not torch.equal(next(iter(statistics(model).values())), next(iter(before.values())))


def test_an_exception_in_the_forward_pass_thaws(model: nn.Module) -> None:
    before = statistics(model)
    with pytest.raises((TypeError, AttributeError)), torch_ire.frozen_batch_norm(model):
        model(None)
    assert_same(statistics(model), before)
    model(X + 1)
    assert not torch.equal(next(iter(statistics(model).values())), next(iter(before.values())))


def test_a_checkpoint_taken_inside_is_whole_and_one_loaded_inside_stays() -> None:
    model = networks()["nested modules"]
    model(X)
    before = statistics(model)
    with torch_ire.frozen_batch_norm(model):
        model(X + 1)
        assert list(model.state_dict()) == list(copy.deepcopy(model).state_dict())
        assert_same(statistics(model), before)
        model.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()})
    assert not any(buffer.any() for buffer in statistics(model).values())


def test_modules_without_statistics_are_passed_by() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.InstanceNorm1d(4), nn.LayerNorm(6))
    expected = model(X)
    with torch_ire.frozen_batch_norm(model):
        assert torch.equal(model(X), expected)
    assert [module.track_running_stats for module in model[:2]] == [False, False]


def test_a_lazy_module_before_its_first_pass_is_refused() -> None:
    model = nn.Sequential(nn.LazyBatchNorm1d())
    with (
        pytest.raises(RuntimeError, match=r"frozen_batch_norm: 0: LazyBatchNorm1d has no statistics yet"),
        torch_ire.frozen_batch_norm(model),
    ):
        pass
    model(X)
    assert int(model[0].num_batches_tracked) == 1


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.InstanceNorm1d])
def test_a_compiled_model_keeps_its_statistics(norm: type[nn.Module]) -> None:
    """A graph that was compiled outside is not used inside."""
    model = nn.Sequential(norm(4, track_running_stats=True))
    compiled = torch.compile(model, backend="eager")
    compiled(X)
    before = statistics(model)
    with torch_ire.frozen_batch_norm(compiled):
        compiled(X + 1)
    assert_same(statistics(model), before)
    compiled(X + 1)
    assert not torch.equal(model[0].running_mean, before["0.running_mean"])
