"""refresh_mask() makes the pass of the README's loop in one call, anywhere between two steps."""

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
def test_one_call_gives_the_masks_and_steps_of_the_readme_loop(curvature):
    """The same masks at the same steps and the same parameters, while gradients are being accumulated."""
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


def test_gradients_statistics_random_numbers_and_mode_are_left_as_found():
    """Also gradients of parameters of another optimizer, and autograd's own mode."""
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


def test_ignored_positions_are_left_out_wherever_the_classes_are():
    """The positions that the loss leaves out, with the classes in the last dimension or in dimension 1."""
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


@pytest.mark.parametrize("curvature", ["second_moment", "random"])
def test_masks_that_need_no_gradients_are_refreshed_without_a_pass(curvature):
    """Of a capturable optimizer: its loop refreshes them, from moments or random numbers."""
    model = small_model()
    opt = torch_ire.AdmIRE(model.parameters(), curvature=curvature, capturable=True, mask_interval=1)
    loss_of(model, 0).backward()
    opt.step()
    assert torch_ire.refresh_mask(opt, None, None)
    assert not opt.mask_due()
    assert opt.ire_summary()["flat_share"] == pytest.approx(0.8, abs=0.1)  # random masks have that share on average
    assert all(p.grad is not None for p in model.parameters())


def images(**shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels with 3 channels and a class for each, some of them left out."""
    generator = torch.Generator().manual_seed(0)
    n, h, w = shape.get("n", 2), shape.get("h", 4), shape.get("w", 6)
    targets = torch.randint(5, (n, h, w), generator=generator)
    targets[torch.rand(n, h, w, generator=generator) < 0.3] = -100
    return torch.randn(n, 3, h, w, generator=generator), targets


def segmenter() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(3, 5, 1)


def masks_of_images(targets: torch.Tensor | None, x: torch.Tensor) -> list[torch.Tensor]:
    """The masks of a segmenter by the plain calls, with the classes in dimension 1."""
    model = segmenter()
    opt = torch_ire.AdmIRE(model.parameters(), gamma=0.5)
    labels = torch_ire.LabelGenerator(seed=3)
    torch_ire.sampled_cross_entropy(model(x), targets, class_dim=1, generator=labels).backward()
    opt.update_mask()
    return masks(opt)


@pytest.mark.parametrize("how", ["batch", "forward", "dictionary"])
def test_targets_show_that_the_classes_of_images_are_in_dimension_1(how):
    x, targets = images()
    model = segmenter()
    opt = torch_ire.AdmIRE(model.parameters(), gamma=0.5)
    options = {"generator": torch_ire.LabelGenerator(seed=3)}
    given = (x, targets)
    if how == "forward":
        options["forward"] = lambda model, batch: (model(batch[0]), batch[1])
    elif how == "dictionary":
        model.forward = lambda pixels, labels, plain=model.forward: plain(pixels)
        given = {"pixels": x, "labels": targets}
    torch_ire.refresh_mask(opt, model, given, **options)
    assert equal(masks(opt), masks_of_images(targets, x))


def test_logits_of_images_without_targets_need_class_dim():
    x, _ = images()
    model = segmenter()
    before = [p.clone() for p in model.parameters()]
    opt = torch_ire.AdmIRE(model.parameters(), gamma=0.5)
    for given in (x, (x,), (x, "names"), (x, torch.rand(2, 5, 4, 6)), {"input": x}):
        with pytest.raises(ValueError, match=r"logits \(2, 5, 4, 6\).*the classes may be in any dimension.*class_dim="):
            torch_ire.refresh_mask(opt, model, given)
    with pytest.raises(ValueError, match="class_dim="):
        torch_ire.refresh_mask(opt, model, x, forward=lambda model, batch: model(batch))
    assert opt.mask_due()
    assert not opt.state
    assert equal([p.detach() for p in model.parameters()], before)
    torch_ire.refresh_mask(opt, model, x, class_dim=1, generator=torch_ire.LabelGenerator(seed=3))
    assert equal(masks(opt), masks_of_images(None, x))


@pytest.mark.parametrize("class_dim", [1, -3])
def test_class_dim_decides_if_the_targets_fit_two_dimensions(class_dim):
    """As many classes as columns: the targets fit both."""
    x, targets = images(h=5, w=5)
    model = segmenter()
    opt = torch_ire.AdmIRE(model.parameters(), gamma=0.5)
    with pytest.raises(
        ValueError, match=r"logits \(2, 5, 5, 5\) and targets \(2, 5, 5\).*dimension 1 or the last.*class_"
    ):
        torch_ire.refresh_mask(opt, model, (x, targets))
    torch_ire.refresh_mask(opt, model, (x, targets), class_dim=class_dim, generator=torch_ire.LabelGenerator(seed=3))
    assert equal(masks(opt), masks_of_images(targets, x))


def test_targets_that_do_not_fit_the_logits_are_refused():
    opt = torch_ire.AdmIRE([nn.Parameter(torch.ones(5))])
    model = nn.Identity()
    with pytest.raises(ValueError, match=r"targets of shape \(4,\) do not fit logits of shape \(3, 5\)"):
        torch_ire.refresh_mask(opt, model, (torch.zeros(3, 5), torch.zeros(4, dtype=torch.int64)))
    with pytest.raises(
        ValueError, match=r"targets of shape \(3, 6\) do not fit logits of shape \(3, 5, 6\).*class_dim=-1"
    ):
        torch_ire.refresh_mask(opt, model, (torch.zeros(3, 5, 6), torch.zeros(3, 6, dtype=torch.int64)), class_dim=-1)
    with pytest.raises(ValueError, match=r"class_dim=4: logits of shape \(3, 5\) have no such dimension"):
        torch_ire.refresh_mask(opt, model, torch.zeros(3, 5), class_dim=4)


def test_tokens_of_transformers_have_their_classes_last():
    """A sequence as long as there are classes fits both dimensions; the heads of transformers leave no doubt."""
    model = Head("ForMaskedLM")
    tokens = torch.arange(14).view(2, 7) % 7
    found = predict(model, {"input_ids": tokens, "labels": tokens}, with_loss=False, ignore_index=-100)
    assert found.targets.tolist() == tokens.tolist()
    assert torch.equal(found.logits, model(tokens)["logits"])
    without = predict(model, {"input_ids": tokens}, with_loss=False, ignore_index=-100)
    assert torch.equal(without.logits, model(tokens)["logits"])


def test_hutchinson_finds_the_classes_of_images():
    x, targets = images()
    model, twin = segmenter(), segmenter()
    opt = torch_ire.AdmIRE(model.parameters(), curvature="hutchinson")
    torch_ire.refresh_mask(opt, model, (x, targets))
    other = torch_ire.AdmIRE(twin.parameters(), curvature="hutchinson")
    other.update_mask(F.cross_entropy(twin(x), targets))
    assert equal(masks(opt), masks(other))


def test_labels_are_drawn_by_the_generator_of_the_optimizer():
    """Neither the labels of other optimizers nor those of calls without a generator move."""
    model = small_model()
    opt = torch_ire.AdmIRE(model.parameters(), gamma=0.5)
    opt.label_generator.manual_seed(3)
    before = repr(torch_ire.default_label_generator)
    torch_ire.refresh_mask(opt, model, batch(0))
    assert opt.label_generator.state_dict() == {"seed": 3, "offset": 1}
    assert repr(torch_ire.default_label_generator) == before
    twin = small_model()
    other = torch_ire.AdmIRE(twin.parameters(), gamma=0.5)
    torch_ire.refresh_mask(other, twin, batch(0), generator=torch_ire.LabelGenerator(seed=3))
    assert equal(masks(opt), masks(other))


def test_steps_in_the_backward_pass_are_paused_for_the_masks():
    """refresh_mask() is the recipe of StepInBackward in one call, and moves no parameter."""
    models = [small_model(), small_model()]
    ours, theirs = (
        torch_ire.StepInBackward(model.parameters(), lambda params: torch_ire.AdmIRE(params, lr=0.02, mask_interval=3))
        for model in models
    )
    assert torch_ire.ire_of(ours) is torch_ire.ire_of(types.SimpleNamespace(optimizer=ours)) is ours
    labels = [torch_ire.LabelGenerator(seed=7) for _ in range(2)]
    refreshed = []
    for step in range(8):
        before = values(models[0])
        if torch_ire.refresh_mask(ours, models[0], batch(step), generator=labels[0]):
            refreshed.append(step)
        assert equal(before, values(models[0]))
        if theirs.mask_due():
            with theirs.paused():
                torch_ire.sampled_cross_entropy(models[1](batch(step)[0]), generator=labels[1]).backward()
            theirs.update_mask()
        for model in models:
            loss_of(model, step).backward()
        assert equal(*map(values, models))
        assert not equal(before, values(models[0]))
    assert refreshed == [0, 3, 6]
    assert equal(masks(ours.optimizer), masks(theirs.optimizer))


def test_the_loss_scale_of_a_wrapper_is_used():
    """Accelerate's optimizer holds the GradScaler; under float16 a pass without the scale would vanish."""
    model = small_model()
    opt = torch_ire.AdmIRE(model.parameters(), curvature_beta=0.5)
    wrapper = types.SimpleNamespace(optimizer=opt, scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    norms = []
    model[0].weight.register_hook(lambda grad: norms.append(float(grad.norm())))
    averages = []
    for given, options in ((opt, {}), (wrapper, {}), (wrapper, {"grad_scale": 8.0})):
        opt.load_state_dict(torch_ire.AdmIRE(model.parameters(), curvature_beta=0.5).state_dict())
        opt.state.clear()
        torch_ire.refresh_mask(given, model, batch(0), generator=torch_ire.LabelGenerator(seed=5), **options)
        averages.append([entry["hessian_diag"] for entry in opt.state_dict()["state"].values()])
    assert norms[1] == pytest.approx(1024.0 * norms[0])
    assert norms[2] == pytest.approx(8.0 * norms[0])
    for plain, found, given in zip(*averages, strict=True):
        torch.testing.assert_close(found, plain)
        torch.testing.assert_close(given, plain)


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
def test_labels_are_shifted_as_in_the_loss_of_the_head(loss_type, config, expected):
    model = Head(loss_type, **config)
    batch = {"input_ids": TOKENS, "labels": LABELS, "num_items_in_batch": 5}
    found = predict(model, batch, with_loss=False, ignore_index=-100)
    assert found.targets.tolist() == expected
    # labels cost a loss, unless the inputs of a decoder are made of them
    assert model.calls == [bool(config)]


def test_padding_is_left_out_if_the_batch_has_no_labels():
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


def test_ire_of_finds_the_optimizer_in_wrappers():
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


def test_one_refresh_serves_all_optimizers_of_a_handle():
    model = small_model()
    halves = [torch.optim.NAdam(model[0].parameters()), torch.optim.RMSprop(model[2].parameters())]
    ire = torch_ire.IRE(halves)
    assert torch_ire.refresh_mask(halves[1], model, batch(0))
    assert not torch_ire.refresh_mask(halves[0], model, batch(0))
    for o in halves:
        loss_of(model, 0).backward()
        o.step()
    assert ire.ire_summary()["flat_share"] == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("how", ["missed refresh", "failed pass"])
def test_labels_are_lent_for_a_refresh_alone(how):
    """A refresh that was never made, or that failed, leaves later losses to the default generator."""
    model = small_model()
    optimizer = torch_ire.AdmIRE(model.parameters(), lr=1e-2, mask_interval=10)
    default = torch_ire.default_label_generator
    if how == "missed refresh":
        assert optimizer.mask_due()
        loss_of(model, 0).backward()
        optimizer.step()
        assert not optimizer.mask_due()
    else:
        with pytest.raises(ZeroDivisionError):
            torch_ire.refresh_mask(optimizer, model, batch(0), forward=lambda model, batch: 1 / 0)
    drawn = default.state_dict()["offset"]
    torch_ire.sampled_cross_entropy(model(batch(0)[0]))
    assert (optimizer.label_generator.state_dict()["offset"], default.state_dict()["offset"]) == (0, drawn + 1)
