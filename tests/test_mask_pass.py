"""refresh_mask(): the mask of the README's loop in one call, anywhere between two steps, with nothing left behind."""

from __future__ import annotations

import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torch_ire
from optimizer_cases import batch, loss_of, refresh, small_model, values
from torch_ire.model_outputs import predict


def masks(handle: torch_ire.AdmIRE) -> list[torch.Tensor]:
    return [entry["flat_mask"] for entry in handle.state_dict()["state"].values() if "flat_mask" in entry]


def equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return bool(ours) and len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("curvature", ["fisher", "hutchinson"])
def test_it_is_the_loop_of_the_readme(curvature):
    """Same masks at the same steps, same parameters; the training gradients under way stay what they are."""
    a, b = small_model(), small_model()
    arguments = {"lr": 1e-2, "mask_interval": 3, "warmup_steps": 1, "curvature": curvature, "curvature_beta": 0.5}
    ours, theirs = torch_ire.AdmIRE(a.parameters(), **arguments), torch_ire.AdmIRE(b.parameters(), **arguments)
    labels = [torch_ire.LabelGenerator(seed=7) for _ in range(2)]
    refreshed = []
    for step in range(8):
        loss_of(a, step).backward()  # accumulation is under way where the mask comes in between
        if torch_ire.refresh_mask(ours, a, batch(step), generator=labels[0]):
            refreshed.append(step)
        ours.step()
        ours.zero_grad()
        if curvature == "fisher" and theirs.mask_due():
            torch_ire.sampled_cross_entropy(b(batch(step)[0]), generator=labels[1]).backward()
            theirs.update_mask(num_predictions=32.0)
        refresh(b, theirs, step, labels[1], curvature)
        loss_of(b, step).backward()
        theirs.step()
        theirs.zero_grad()
        if refreshed:
            assert equal(masks(ours), masks(theirs))
    assert refreshed == [1, 4, 7]
    assert equal(values(a), values(b))
    state_a, state_b = ours.state_dict()["state"], theirs.state_dict()["state"]
    for i in state_a:
        assert torch.equal(state_a[i]["hessian_diag"], state_b[i]["hessian_diag"])


def test_nothing_is_left_behind():
    """Gradients (also of parameters that another optimizer has), BatchNorm, random numbers, the mode, autograd's."""
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 5))
    opt = torch_ire.AdmIRE(model[0].parameters(), lr=1e-2)
    x, y = batch(0)
    F.cross_entropy(model(x), y).backward()
    grads = [p.grad for p in model.parameters()]
    copies = [grad.clone() for grad in grads]
    buffers = [b.clone() for b in model.buffers()]
    state = torch.get_rng_state()
    with torch.no_grad():
        assert torch_ire.refresh_mask(opt, model, (x, y))
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))
    assert equal(grads, copies)
    assert equal(list(model.buffers()), buffers)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_an_exception_puts_the_gradients_back():
    model = small_model()
    opt = torch_ire.AdmIRE(model.parameters())
    loss_of(model, 0).backward()
    grads = [p.grad for p in model.parameters()]
    with pytest.raises(KeyError):
        torch_ire.refresh_mask(opt, model, batch(0), forward=lambda model, batch: {}["logits"])
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))
    assert opt.mask_due()


@pytest.mark.parametrize("curvature", ["second_moment", "random"])
def test_curvatures_that_step_refreshes_need_no_pass(curvature):
    model = small_model()
    opt = torch_ire.AdmIRE(model.parameters(), curvature=curvature)
    assert not torch_ire.refresh_mask(opt, None, None)


def test_ignored_positions_and_the_dimension_of_the_classes():
    """What is left out of the loss is left out of the mask's; the classes may be last or second."""
    torch.manual_seed(0)
    logits = torch.randn(4, 6, 5)
    targets = torch.randint(5, (4, 6)).masked_fill(torch.rand(4, 6) < 0.4, -100)
    net = nn.Linear(3, 5)
    for move in (None, 1):
        shaped = logits if move is None else logits.movedim(-1, 1)
        found = predict(lambda x, shaped=shaped: shaped, (None, targets), with_loss=False, ignore_index=-100)
        assert torch.equal(found.logits, logits)
        assert torch.equal(found.targets, targets)
    x = torch.randn(4, 6, 3)
    ours, theirs = nn.Linear(3, 5), nn.Linear(3, 5)
    for copy in (ours, theirs):
        copy.load_state_dict(net.state_dict())
    opt = torch_ire.AdmIRE(ours.parameters(), ranking="parameter", gamma=0.5)
    torch_ire.refresh_mask(opt, ours, (x, targets), generator=torch_ire.LabelGenerator(seed=3))
    plain = torch_ire.AdmIRE(theirs.parameters(), ranking="parameter", gamma=0.5)
    torch_ire.sampled_cross_entropy(theirs(x), targets, generator=torch_ire.LabelGenerator(seed=3)).backward()
    plain.update_mask()
    assert equal(masks(opt), masks(plain))


def test_targets_that_fit_no_dimension_or_two():
    opt = torch_ire.AdmIRE([nn.Parameter(torch.ones(5))])
    model = nn.Identity()
    with pytest.raises(ValueError, match=r"targets of shape \(4,\) don't fit logits of shape \(3, 5\)"):
        torch_ire.refresh_mask(opt, model, (torch.zeros(3, 5), torch.zeros(4, dtype=torch.int64)))
    with pytest.raises(ValueError, match="may be in the second or in the last dimension"):
        torch_ire.refresh_mask(opt, model, (torch.zeros(3, 5, 5), torch.zeros(3, 5, dtype=torch.int64)))


class Head(nn.Module):
    """Outputs and attributes as a head of transformers has them."""

    def __init__(self, loss_type: str | None, **config: object) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 6), nn.Linear(6, 7)
        self.loss_type, self.config, self.calls = loss_type, types.SimpleNamespace(**config), []

    def forward(self, input_ids, labels=None, attention_mask=None, num_items_in_batch=None):
        self.calls.append(labels is not None)
        return {"logits": self.head(self.embedding(input_ids))}


TOKENS = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
LABELS = torch.tensor([[-100, 2, 3, 4], [5, 6, -100, -100]])


@pytest.mark.parametrize(
    ("loss_type", "config", "expected"),
    [
        ("ForCausalLM", {}, [[2, 3, 4, -100], [6, -100, -100, -100]]),
        (None, {}, [[2, 3, 4, -100], [6, -100, -100, -100]]),
        ("ForMaskedLM", {}, LABELS.tolist()),
        ("ForConditionalGeneration", {"is_encoder_decoder": True}, LABELS.tolist()),
    ],
)
def test_labels_are_where_the_loss_of_the_head_has_them(loss_type, config, expected):
    model = Head(loss_type, **config)
    batch = {"input_ids": TOKENS, "labels": LABELS, "num_items_in_batch": 5}
    found = predict(model, batch, with_loss=False, ignore_index=-100)
    assert found.targets.tolist() == expected
    # labels cost a loss, unless the inputs of a decoder are made of them
    assert model.calls == [bool(config)]


def test_without_labels_the_padding_is_known():
    found = predict(
        Head("ForCausalLM"),
        {"input_ids": TOKENS, "attention_mask": (TOKENS > 0).long()},
        with_loss=False,
        ignore_index=-100,
    )
    assert found.targets.tolist() == [[0, 0, 0, -100], [0, -100, -100, -100]]


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_heads_without_a_softmax_are_refused(problem):
    with pytest.raises(ValueError, match=f"problem_type='{problem}'"):
        predict(
            Head("ForSequenceClassification", problem_type=problem),
            {"input_ids": TOKENS, "labels": LABELS},
            with_loss=False,
            ignore_index=-100,
        )


def test_outputs_without_logits_are_refused():
    opt = torch_ire.AdmIRE([nn.Parameter(torch.ones(2))])
    with pytest.raises(TypeError, match="pass forward= to say where the logits are"):
        torch_ire.refresh_mask(opt, Unusual(), torch.ones(2, 2))
    with pytest.raises(TypeError, match="expected a batch that is a tensor, a sequence or a mapping, got int"):
        torch_ire.refresh_mask(opt, nn.Flatten(), 3)
    with pytest.raises(TypeError, match=r"forward=: expected logits, \(logits, targets\) or a scalar loss, got dict"):
        torch_ire.refresh_mask(opt, nn.Flatten(), 3, forward=lambda model, batch: {})


class Unusual(nn.Module):
    def forward(self, x):
        return [x]


def test_forward_may_return_the_sampled_loss_itself():
    """A Gaussian likelihood: labels drawn around the prediction, squared error."""
    torch.manual_seed(1)
    net = nn.Linear(3, 2)
    x = torch.randn(8, 3)
    noise = torch.randn(8, 2)
    opt = torch_ire.AdmIRE(net.parameters(), gamma=0.5)
    torch_ire.refresh_mask(
        opt, net, x, forward=lambda model, batch: 0.5 * (model(batch) - (model(batch).detach() + noise)).square().mean()
    )
    gradient = torch.autograd.grad((net(x) * -noise).mean(), list(net.parameters()))
    scores = torch.cat([g.square().flatten() for g in gradient])
    flat = scores <= scores.sort().values[round(0.5 * scores.numel()) - 1]
    assert torch.equal(torch.cat([m.flatten() for m in masks(opt)]), flat)


def test_a_loss_scale_keeps_small_gradients_and_changes_no_average():
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for scale in (None, 1024.0):
        model = small_model()
        opt = torch_ire.AdmIRE(model.parameters(), curvature_beta=0.5)
        generator = torch_ire.LabelGenerator(seed=5)
        torch_ire.refresh_mask(opt, model, x, grad_scale=scale, generator=generator)
        found.append([entry["hessian_diag"] for entry in opt.state_dict()["state"].values()])
    for h, scaled in zip(*found, strict=True):
        torch.testing.assert_close(h, scaled)
        assert float(h.max()) > 0


def test_hutchinson_needs_targets_and_takes_the_loss_of_the_model():
    model = small_model()
    opt = torch_ire.AdmIRE(model.parameters(), curvature="hutchinson")
    with pytest.raises(ValueError, match="needs the targets of the batch"):
        torch_ire.refresh_mask(opt, model, batch(0)[0])

    class WithLoss(nn.Module):
        loss_type, config = "ForSequenceClassification", types.SimpleNamespace()

        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x, labels):
            logits = self.net(x)
            return {"logits": logits, "loss": F.cross_entropy(logits, labels)}

    x, y = batch(0)
    torch_ire.refresh_mask(opt, WithLoss(), {"x": x, "labels": y})
    twin = small_model()
    other = torch_ire.AdmIRE(twin.parameters(), curvature="hutchinson")
    other.update_mask(F.cross_entropy(twin(x), y))
    assert equal(masks(opt), masks(other))


def test_the_ire_behind_wrappers():
    params = [nn.Parameter(torch.ones(3))]
    opt = torch_ire.AdmIRE(params)
    wrapper = types.SimpleNamespace(optimizer=types.SimpleNamespace(optimizer=opt))
    assert torch_ire.ire_of(wrapper) is opt
    base = torch.optim.NAdam(params)
    ire = torch_ire.IRE(base)
    assert torch_ire.ire_of(ire) is torch_ire.ire_of(types.SimpleNamespace(optimizer=base)) is ire
    ire.detach()
    with pytest.raises(TypeError, match="expected AdmIRE, SGDIRE, SAMIRE, an optimizer that IRE"):
        torch_ire.ire_of(base)


def test_several_optimizers_in_one_handle():
    model = small_model()
    halves = [torch.optim.NAdam(model[0].parameters()), torch.optim.RMSprop(model[2].parameters())]
    ire = torch_ire.IRE(halves)
    assert torch_ire.refresh_mask(halves[1], model, batch(0))
    assert not torch_ire.refresh_mask(halves[0], model, batch(0))
    for o in halves:
        loss_of(model, 0).backward()
        o.step()
    assert ire.ire_summary()["flat_share"] == pytest.approx(0.8, abs=0.01)
