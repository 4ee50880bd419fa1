"""`torch.compile` of a step: one graph for all steps, with the results of the ordinary loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import torch_ire
from optimizer_cases import CASES, loss_of, small_model, values
from scheduled_loop import FIXED, Loop, around, assert_same, ours
from torch_ire.optim.ire_optimizer import IREOptimizer

STEPS = range(50)

# Dynamo looks at .grad of whatever tensor it meets
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def breaks() -> int:
    return sum(torch._dynamo.utils.counters["graph_break"].values())


class Compiled:
    """Compiles each part of a step at its first call, and counts the graphs."""

    def __init__(self, backend: str = "aot_eager", *, fullgraph: bool = True) -> None:
        self.counter = CompileCounterWithBackend(backend)
        self.fullgraph = fullgraph
        self.parts: dict[str, Callable[[], None]] = {}

    def __call__(self, name: str, function: Callable[[], None], step: int) -> None:
        if name not in self.parts:
            self.parts[name] = torch.compile(lambda: function(), backend=self.counter, fullgraph=self.fullgraph)
        self.parts[name]()


@pytest.mark.parametrize("case", FIXED, ids=[case.name for case in FIXED])
def test_fifty_steps_compile_to_one_graph(case):
    """From the first step on, without state, under a changing lr and kappa, across refreshes and the warm-up's end."""
    compiled = Compiled()
    loop, expected = Loop(ours(case, True), compiled), Loop(ours(case, False))
    assert_same(loop.run(STEPS), expected.run(STEPS))
    assert loop.due == expected.due
    assert len(loop.due) > 10
    assert graphs() == (2 if "SAM" in case.name else 1)
    assert breaks() == 0


@pytest.mark.parametrize(
    "overrides",
    [
        {"kappa_follows_lr": True},
        {"curvature": "second_moment"},
        {"curvature": "random", "amplify_weight_decay": False},
    ],
    ids=str,
)
def test_every_kind_of_kappa_and_mask_compiles_to_one_graph(overrides):
    compiled = Compiled()
    loop, expected = Loop(ours(CASES[0], True, **overrides), compiled), Loop(ours(CASES[0], False, **overrides))
    assert_same(loop.run(), expected.run())
    assert graphs() == 1


def test_inductor_compiles_the_step():
    loop, expected = Loop(ours(CASES[0], True), Compiled("inductor")), Loop(ours(CASES[0], False))
    assert_same(loop.run(range(6)), expected.run(range(6)))


def adm_ire(params, *, capturable: bool = True, **overrides) -> torch_ire.AdmIRE:
    scalars = {"lr": torch.tensor(0.02), "kappa": torch.tensor(2.0)} if capturable else {"lr": 0.02, "kappa": 2.0}
    return torch_ire.AdmIRE(params, **{**scalars, "mask_interval": 5, **overrides}, capturable=capturable)


def run(model: nn.Module, optimizer: torch.optim.Optimizer, step: Callable[[int], None], steps: int) -> None:
    labels = torch_ire.LabelGenerator(seed=7)
    for t in range(steps):
        if optimizer.mask_due():
            torch_ire.sampled_cross_entropy(model(torch.ones(4, 8)), generator=labels).backward()
            optimizer.update_mask()
        for group in optimizer.param_groups:
            for name, value in (("lr", 0.02 * 0.97**t), ("kappa", 2.0 * 0.97**t)):
                if isinstance(group[name], torch.Tensor):
                    group[name].fill_(value)  # one tensor, in all groups
                else:
                    group[name] = value
        step(t)


def groups_of(model: nn.Module) -> list[dict]:
    """Groups with arguments of their own, a parameter in the memory order of a transpose, and one without gradient."""
    first, bias, *rest = model.parameters()
    first.data = first.data.t().contiguous().t()
    half = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    half.grad = torch.ones_like(half)
    unused = nn.Parameter(torch.ones(2))
    return [
        {"params": [first, unused]},
        {"params": [bias, half], "gamma": 0.3, "rounding": "stochastic"},
        {"params": rest},
    ]


def test_groups_dtypes_and_layouts_compile_to_one_graph():
    results = []
    counter = CompileCounterWithBackend("aot_eager")
    for capturable in (True, False):
        model = small_model()
        optimizer = adm_ire(groups_of(model), capturable=capturable)
        step = (
            torch.compile(lambda o=optimizer: o.step(), backend=counter, fullgraph=True)
            if capturable
            else optimizer.step
        )

        def train(t: int, model=model, optimizer=optimizer, step=step) -> None:
            for p in model.parameters():
                p.grad = None
            loss_of(model, t).backward()
            step()

        run(model, optimizer, train, 12)
        results.append([p.detach().clone() for group in optimizer.param_groups for p in group["params"]])
        assert int(optimizer.param_groups[0]["ire_step"]) == 12
    assert counter.frame_count == 1
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["torch.optim.AdamW", "AdmIRE", "SAMIRE"])
def test_a_compiled_training_step_leaves_the_graph_only_at_backward(kind):
    """Forward, backward and step in one function: Dynamo leaves the graph at backward(), as it does for torch's own."""
    counter = CompileCounterWithBackend("aot_eager")
    model, other = small_model(), small_model()
    arguments = {"lr": torch.tensor(0.02), "kappa": torch.tensor(2.0), "capturable": True}
    if kind == "torch.optim.AdamW":
        optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.02), foreach=False)
    elif kind == "AdmIRE":
        optimizer, eager = adm_ire(model.parameters()), adm_ire(other.parameters(), capturable=False)
    else:
        optimizer = torch_ire.SAMIRE(model.parameters(), **arguments)
        eager = torch_ire.SAMIRE(other.parameters(), lr=0.02, kappa=2.0)

    def whole(m: nn.Module, o: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.cross_entropy(m(x), y)
        loss.backward()
        if isinstance(o, torch_ire.SAMIRE):
            o.first_step(zero_grad=True)
            nn.functional.cross_entropy(m(x), y).backward()
            o.second_step()
        else:
            o.step()
        return loss

    compiled = torch.compile(whole, backend=counter)
    x, y = torch.randn(32, 8), torch.randint(5, (32,))
    graphs = []
    for t in range(20):
        for o in (optimizer,) if kind == "torch.optim.AdamW" else (optimizer, eager):
            o.param_groups[0]["lr"] *= 0.95
        compiled(model, optimizer, x, y)
        model.zero_grad()
        if kind != "torch.optim.AdamW":
            whole(other, eager, x, y)
            other.zero_grad()
        graphs.append(counter.frame_count)
        if t == 0:
            first = counter.frame_count
    assert first == (3 if kind == "SAMIRE" else 2)  # around each backward()
    assert graphs[-1] == first
    if kind != "torch.optim.AdamW":
        for p, q in zip(values(model), values(other), strict=True):
            torch.testing.assert_close(p, q)


def test_ire_around_an_optimizer_is_not_compiled_again_after_three_steps():
    """The optimizer's own step is compiled again once, when its state has come; torch's AdamW breaks the graph."""
    compiled = Compiled(fullgraph=False)
    loop, expected = Loop(around(True), compiled), Loop(around(False))
    path = loop.run(range(3))
    settled = compiled.counter.frame_count
    path += loop.run(range(3, 30))
    assert_same(path, expected.run(range(30)))
    assert compiled.counter.frame_count == settled


@pytest.mark.parametrize("kind", ["host", "projector", "closure", "random perturbation", "missing gradient"])
def test_steps_that_cannot_be_traced_run_outside_the_graph(kind):
    """With the results of an ordinary step and no compilation of it; under fullgraph=True it is an error."""

    class Half:
        def refresh(self) -> None:
            pass

        def amplify_(self, params, previous, kappa) -> None:
            for p, q in zip(params, previous, strict=True):
                p.add_(p - q, alpha=kappa / 2)

    def made() -> tuple[nn.Module, IREOptimizer]:
        model = small_model()
        if kind in ("closure", "random perturbation", "missing gradient"):
            perturbation = "random" if kind == "random perturbation" else "gradient"
            return model, torch_ire.SAMIRE(model.parameters(), perturbation=perturbation, capturable=True)
        curvature = Half() if kind == "projector" else "random"
        return model, torch_ire.AdmIRE(model.parameters(), curvature=curvature, capturable=kind != "host")

    def step(optimizer: IREOptimizer, model: nn.Module) -> None:
        if kind == "closure":

            def closure() -> torch.Tensor:
                optimizer.zero_grad()
                loss = loss_of(model, 0)
                loss.backward()
                return loss

            optimizer.step(closure)
        elif isinstance(optimizer, torch_ire.SAMIRE):
            optimizer.first_step()
            optimizer.second_step()
        else:
            optimizer.step()

    counter = CompileCounterWithBackend("eager")
    (model, optimizer), (other, eager) = made(), made()
    compiled = torch.compile(step, backend=counter)
    for m, o, f in ((model, optimizer, compiled), (other, eager, step)):
        for t in range(12):
            loss_of(m, t).backward()
            if kind == "missing gradient":
                next(m.parameters()).grad = None
            f(o, m)
            m.zero_grad()
    assert counter.frame_count == 0
    assert breaks() > 0
    for p, q in zip(values(model), values(other), strict=True):
        assert torch.equal(p, q)
    torch._dynamo.reset()
    loss_of(model, 0).backward()
    if kind == "missing gradient":
        next(model.parameters()).grad = None
    with pytest.raises(torch._dynamo.exc.Unsupported, match="only a capturable optimizer"):
        torch.compile(step, backend="eager", fullgraph=True)(optimizer, model)


@pytest.mark.parametrize("first_compiled", [True, False])
def test_the_passes_of_sam_may_be_compiled_one_by_one(first_compiled):
    model, other = small_model(), small_model()
    optimizer = torch_ire.SAMIRE(model.parameters(), capturable=True)
    eager = torch_ire.SAMIRE(other.parameters())
    first, second = optimizer.first_step, optimizer.second_step
    if first_compiled:
        first = torch.compile(lambda: optimizer.first_step(zero_grad=True), backend="eager", fullgraph=True)
    else:
        second = torch.compile(lambda: optimizer.second_step(), backend="eager")
    for t in range(3):
        for m, one, two in ((model, first, second), (other, eager.first_step, eager.second_step)):
            loss_of(m, t).backward()
            one()
            m.zero_grad()
            loss_of(m, t).backward()
            two()
            m.zero_grad()
    for p, q in zip(values(model), values(other), strict=True):
        assert torch.equal(p, q)
    loss_of(model, 0).backward()
    first()
    with pytest.raises(RuntimeError, match="called twice"):
        optimizer.first_step()
    with pytest.raises(RuntimeError, match="between first_step"):
        optimizer.__getstate__()


@pytest.mark.parametrize("overflow", [0.0, 1.0])
def test_the_overflow_flag_of_a_scaler_is_read_in_the_graph(overflow):
    results = []
    for compiled in (True, False):
        model = small_model()
        optimizer = torch_ire.SAMIRE(model.parameters(), lr=0.1, capturable=True)
        first, second = optimizer.first_step, optimizer.second_step
        if compiled:
            first = torch.compile(lambda o=optimizer: o.first_step(), backend="eager", fullgraph=True)
            second = torch.compile(lambda o=optimizer: o.second_step(), backend="eager", fullgraph=True)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)
        for t in range(3):
            optimizer.found_inf.fill_(overflow if t == 1 else 0.0)
            (4 * loss_of(model, t)).backward()
            first()
            model.zero_grad()
            (4 * loss_of(model, t)).backward()
            second()
            model.zero_grad()
        results.append(values(model))
    for p, q in zip(*results, strict=True):
        assert torch.equal(p, q)
