"""Random training runs of the optimizers, compared with the oracle after every step."""

from __future__ import annotations

import copy
import io
import pickle
from random import Random
from typing import Any

import torch
from torch import Tensor

import torch_ire
from step_oracle import Memory, Oracle, Step
from tolerances import assert_within_ulps, opmath_dtype

OPTIMIZERS = ("AdmIRE", "SGDIRE", "SAMIRE-adamw", "SAMIRE-sgd", "IRE-AdamW", "IRE-SGD")
DTYPES = [(torch.float64,), (torch.float32,), (torch.bfloat16,), (torch.float16,)]
MIXED = [(torch.float64, torch.float32), (torch.float32, torch.bfloat16), (torch.float16, torch.float64)]
SHAPES = [(), (0,), (1,), (9,), (3, 5), (2, 0, 3), (2, 3, 4, 5)]
# Units in the last place of the arithmetic's dtype, of the size of the terms: one rounding each for the dozen
# operations of a step; moments take three.
STEP_ULPS, MOMENT_ULPS = 8.0, 4.0


def random_layout(rng: Random, values: Tensor) -> Tensor:
    """The same values somewhere else in memory."""
    how = rng.choice(["plain", "plain", "transposed", "channels_last", "sliced", "offset"])
    if how == "transposed" and values.dim() >= 2:
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "channels_last" and values.dim() == 4:
        return values.contiguous(memory_format=torch.channels_last)
    if how == "sliced" and values.dim() >= 1:
        return torch.stack([values, values + 1], dim=-1)[..., 0]
    if how == "offset" and values.dim() >= 1:
        return torch.cat([values[:1], values])[1:] if values.shape[0] else values
    return values.clone()


def ire_arguments(rng: Random, curvatures: list[str], curvature_beta: float) -> dict[str, Any]:
    curvature = rng.choice(curvatures)
    return {
        "kappa": rng.choice([0.0, 0.5, 2.0, 7.0, torch.tensor(3.0, dtype=torch.float64)]),
        "gamma": rng.choice([0.0, 0.3, 0.5, 0.8, 1.0]),
        "warmup_steps": rng.choice([0, 0, 1, 2]),
        "mask_interval": rng.choice([1, 2, 3]),
        "curvature": curvature,
        "curvature_beta": curvature_beta if curvature in ("fisher", "hutchinson") else 0.0,
        "kappa_follows_lr": rng.choice([False, True]),
        "ranking": rng.choice(["global", "group", "parameter"]),
        "implementation": rng.choice([None, "native", "reference"]),
        "seed": rng.randrange(3),
    }


def base_arguments(rng: Random, base: str, foreign: bool) -> dict[str, Any]:
    lr = rng.choice([0.3, 0.05, 1e-3])
    common = {"weight_decay": rng.choice([0.0, 0.1]), "maximize": rng.choice([False, True])}
    common["lr"] = lr if foreign or rng.random() < 0.7 else torch.tensor(lr, dtype=torch.float64)
    if base == "AdamW":
        betas = rng.choice([(0.9, 0.999), (0.0, 0.5), (0.8, 0.95)])
        return {**common, "betas": betas, "eps": rng.choice([1e-8, 1e-3, 1e-16])}
    momentum, dampening, nesterov = rng.choice(
        [(0.0, 0.0, False), (0.9, 0.0, False), (0.8, 0.3, False), (0.7, 0.0, True)]
    )
    return {**common, "momentum": momentum, "dampening": dampening, "nesterov": nesterov}


class FuzzedRun:
    """One run of one optimizer.

    Args:
        rng: Every choice comes from here.
        name: One of ``OPTIMIZERS``.
        oracle: What the steps should be.
    """

    def __init__(self, rng: Random, name: str, oracle: Oracle) -> None:
        self.rng, self.name, self.oracle = rng, name, oracle
        self.foreign, self.sam = name.startswith("IRE"), name.startswith("SAM")
        self.base = "AdamW" if name in ("AdmIRE", "SAMIRE-adamw", "IRE-AdamW") else "SGD"
        self.generator = torch.Generator().manual_seed(rng.randrange(2**31))
        self.dtypes = rng.choice(DTYPES[:2] + MIXED[:1] if self.foreign else DTYPES + MIXED)
        asking = rng.choice(["fisher", "hutchinson"])
        moment = ["second_moment"] if self.base == "AdamW" and not self.foreign else []
        self.curvatures = [asking, asking, "random", *moment]
        # the same in all groups: averages and single estimates in one ranking would be compared in unlike units
        self.curvature_beta = rng.choice([0.0, 0.6])
        self.uses_scaler = not self.foreign and rng.random() < 0.3
        self.shared = self._shared_arguments()
        self.groups: list[dict[str, Any]] = []
        self.params: list[list[Tensor]] = []
        for _ in range(rng.choice([1, 2, 3])):
            self._draw_group()
        self.memory = [[Memory(torch.zeros(p.shape, dtype=torch.bool)) for p in ps] for ps in self.params]
        self.largest_lr = [0.0 for _ in self.groups]
        self.refreshed = [-1 for _ in self.groups]
        self.t = 0
        self._build(self.groups)

    # -- configuration -------------------------------------------------------------------------------------------------

    def _shared_arguments(self) -> dict[str, Any]:
        """Arguments that all groups of a run have in common: those of the handle, and the kind of the perturbation."""
        if self.foreign:
            decoupled = {"amplify_weight_decay": self.base != "AdamW" or self.rng.random() < 0.6}
            return {**ire_arguments(self.rng, self.curvatures, self.curvature_beta), **decoupled}
        return {"perturbation": self.rng.choice(["gradient", "gradient", "random"])} if self.sam else {}

    def _draw_group(self) -> None:
        rng = self.rng
        group = {**base_arguments(rng, self.base, self.foreign), **self.shared}
        if not self.foreign:
            group.update(ire_arguments(rng, self.curvatures, self.curvature_beta))
            group["amplify_weight_decay"] = self.base == "SGD" or rng.random() < 0.6
            group["skip_nonfinite"] = rng.random() < 0.3
            group["rounding"] = rng.choice(["nearest", "nearest", "master"])
        if self.sam:
            group |= {"rho": rng.choice([0.0, 0.05, 0.5]), "adaptive": rng.choice([False, True])}
        self.groups.append(group)
        self.params.append([self._draw_parameter() for _ in range(rng.choice([1, 2, 3]))])

    def _draw_parameter(self) -> Tensor:
        values = torch.randn(self.rng.choice(SHAPES), generator=self.generator, dtype=torch.float64)
        return torch.nn.Parameter(random_layout(self.rng, values.to(self.rng.choice(self.dtypes))))

    def _draw_gradient(self, param: Tensor) -> Tensor:
        size = 10.0 ** self.rng.choice([-2, 0, 1])
        g = torch.randn(param.shape, generator=self.generator, dtype=torch.float64) * size
        if self.rng.random() < 0.1:
            g = g.round()  # ties, zeros among them
        if g.numel() and self.rng.random() < 0.03:
            g.view(-1)[self.rng.randrange(g.numel())] = torch.nan  # with infinities torch's own results vary by rule
        return random_layout(self.rng, g.to(param.dtype))

    def _draw_gradients(self, share: float = 0.85) -> list[list[Tensor | None]]:
        return [[self._draw_gradient(p) if self.rng.random() < share else None for p in ps] for ps in self.params]

    def _build(self, groups: list[dict[str, Any]]) -> None:
        """The optimizer: arguments of the first group to the constructor, those of the others in their groups."""
        own = [self._group_arguments(group) for group in copy.deepcopy(groups)]
        listed = [{"params": ps, **(a if i else {})} for i, (ps, a) in enumerate(zip(self.params, own, strict=True))]
        if self.foreign:
            self.optimizer = getattr(torch.optim, self.base)(listed, **own[0])
            names = [*ire_arguments(Random(0), ["random"], 0.0), "amplify_weight_decay"]
            self.handle: Any = torch_ire.IRE(self.optimizer, **{key: groups[0][key] for key in names})
        else:
            make = getattr(torch_ire, self.name.partition("-")[0])
            base = {"base": self.base.lower()} if self.sam else {}
            self.optimizer = self.handle = make(listed, **own[0], **base)

    def _group_arguments(self, group: dict[str, Any]) -> dict[str, Any]:
        """What a group of the optimizer itself takes: the handle of a foreign optimizer has the arguments of IRE."""
        return {k: v for k, v in group.items() if k not in self.shared} if self.foreign else group

    # -- between steps -------------------------------------------------------------------------------------------------

    def event(self) -> None:
        """Something that must not change the run, or a change that the oracle hears of."""
        kind = self.rng.choice([None, None, None, "lr", "layout", "reload", "load", "deepcopy", "pickle", "group"])
        if kind == "lr":
            self._change_learning_rates()
        elif kind == "layout":  # as model.to(memory_format=...) does
            for p in (p for ps in self.params for p in ps if self.rng.random() < 0.5):
                p.grad = None
                p.data = random_layout(self.rng, p.detach())
        elif kind == "reload":
            file = io.BytesIO()
            torch.save(self.optimizer.state_dict(), file)
            file.seek(0)
            self._build([{**group, "lr": 0.77, "weight_decay": 0.0} for group in self.groups])
            self.optimizer.load_state_dict(torch.load(file, weights_only=True))
        elif kind == "load":
            self.optimizer.load_state_dict(self.optimizer.state_dict())
        elif kind in ("deepcopy", "pickle"):
            both = (self.params, self.optimizer, self.handle)
            both = copy.deepcopy(both) if kind == "deepcopy" else pickle.loads(pickle.dumps(both))
            self.params, self.optimizer, self.handle = both
        elif kind == "group" and len(self.groups) < 4:
            self._draw_group()
            own = copy.deepcopy(self._group_arguments(self.groups[-1]))
            self.optimizer.add_param_group({"params": self.params[-1], **own})
            self.memory.append([Memory(torch.zeros(p.shape, dtype=torch.bool)) for p in self.params[-1]])
            self.largest_lr.append(0.0)
            self.refreshed.append(self.refreshed[0])

    def _change_learning_rates(self) -> None:
        factor = self.rng.choice([0.1, 0.5, 3.0])
        for group, ours in zip(self.optimizer.param_groups, self.groups, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(float(ours["lr"]) * factor)
            else:
                group["lr"] = float(ours["lr"]) * factor
            ours["lr"] = copy.deepcopy(group["lr"])

    # -- masks ---------------------------------------------------------------------------------------------------------

    def _due(self, *curvatures: str) -> list[int]:
        return [
            i
            for i, a in enumerate(self.groups)
            if a["curvature"] in curvatures
            and self.t >= a["warmup_steps"]
            and (self.t - a["warmup_steps"]) % a["mask_interval"] == 0
            and self.refreshed[i] != self.t
        ]

    def refresh(self) -> None:
        """``mask_due()`` and, most times that it says so, ``update_mask()``."""
        asking = [i for i, a in enumerate(self.groups) if a["curvature"] in ("fisher", "hutchinson")]
        due = self._due("fisher", "hutchinson")
        assert self.handle.mask_due() == bool(due), f"step {self.t}: mask_due() should be {bool(due)}"
        grads = self._draw_gradients()
        if self.rng.random() > (0.85 if due else 0.15) or all(g is None for i in asking for g in grads[i]):
            return
        number, loss_scale = self.rng.choice([1.0, 8.0]), self.rng.choice([None, 4.0])
        if self.groups[asking[0]]["curvature"] == "hutchinson":
            grads = [[None if g is None else g.nan_to_num(0.0, 0.0, 0.0) for g in gs] for gs in grads]
            # a loss whose Hessian is diagonal, so that random signs z give z * Hz = diag(H) exactly
            terms = [
                (g * p * p).sum().double()
                for i in asking
                for g, p in zip(grads[i], self.params[i], strict=True)
                if g is not None
            ]
            self.handle.update_mask(sum(terms))
        else:
            self._set([[None if g is None else g * (loss_scale or 1.0) for g in gs] for gs in grads])
            self.handle.update_mask(num_predictions=number, grad_scale=loss_scale)
            assert all(p.grad is None for ps in self.params for p in ps)
        for i in asking:
            for g, memory in zip(grads[i], self.memory[i], strict=True):
                if g is not None and self.groups[i]["curvature"] == "hutchinson":
                    memory.estimates.append(2 * g.double())
                elif g is not None:
                    scaled = (g * (loss_scale or 1.0)).double() / (loss_scale or 1.0)
                    memory.estimates.append(number * scaled.square())
        self._read()
        scores = {i: self._scores(i, grads[i], loss_scale or 1.0) for i in asking}
        self._rank(scores, due or asking)

    def _scores(self, i: int, grads: list[Tensor | None], loss_scale: float) -> list[Tensor | None]:
        """What is ranked, in the bits that the optimizer ranks: the averages have been compared and are taken over."""
        a = self.groups[i]
        if a["curvature_beta"] == 0 and a["curvature"] == "fisher":
            # squares in float32 whatever the dtype
            return [None if g is None else (g * loss_scale).float().square().double() for g in grads]
        if a["curvature_beta"] == 0:
            return [None if g is None else 2 * g.double().abs() for g in grads]
        scores: list[Tensor | None] = []
        for p, g, memory in zip(self.params[i], grads, self.memory[i], strict=True):
            if g is None:
                scores.append(None)
                continue
            h = self._saved(p)["hessian_diag"]
            expected = self.oracle.average(memory.estimates, a["curvature_beta"])
            scale = self.oracle.average([h.abs() for h in memory.estimates], a["curvature_beta"])
            if memory.estimates and all(e.isfinite().all() for e in memory.estimates):
                self._close(h, expected, scale, MOMENT_ULPS * len(memory.estimates), f"hessian_diag of group {i}")
            scores.append(h.double().abs())
        return scores

    def _rank(self, scores: dict[int, list[Tensor | None]], due: list[int]) -> None:
        for i in due:
            ranking, masks = self.groups[i]["ranking"], self.memory[i]
            for j, own in enumerate(scores[i]):
                pool = [own] if ranking == "parameter" else scores[i]
                if ranking == "global":
                    pool = [s for k, ss in scores.items() if self.groups[k]["ranking"] == "global" for s in ss]
                present = [s for s in pool if s is not None]
                masks[j].flat = torch.zeros_like(masks[j].flat)
                if own is not None:
                    flat = self.oracle.flat(present, self.groups[i]["gamma"])
                    masks[j].flat = next(n for s, n in zip(present, flat, strict=True) if s is own)
            self.refreshed[i] = self.t

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _set(self, grads: list[list[Tensor | None]]) -> None:
        for ps, gs in zip(self.params, grads, strict=True):
            for p, g in zip(ps, gs, strict=True):
                p.grad = None if g is None else g.clone() if self.rng.random() < 0.5 else g

    def step(self) -> None:
        self._read()
        before = [[self._theta(p, a) for p in ps] for ps, a in zip(self.params, self.groups, strict=True)]
        grads = self._draw_gradients()
        bad_first = self._ascend() if self.sam and self.rng.random() < 0.85 else None
        self._set(grads)
        bad = [
            a["skip_nonfinite"] and any(g is not None and not g.isfinite().all() for g in gs)
            for gs, a in zip(grads, self.groups, strict=True)
            if not self.foreign
        ]
        scale, overflow = 1.0, False
        if self.uses_scaler:
            scale, overflow = self.rng.choice([1.0, 8.0]), self.rng.random() < 0.2
            self._set([[None if g is None else g * scale for g in gs] for gs in grads])
            self.optimizer.grad_scale = torch.tensor(scale)
            self.optimizer.found_inf = torch.tensor(float(overflow))
        self.optimizer.step()
        self._read()
        if self.uses_scaler:
            del self.optimizer.grad_scale, self.optimizer.found_inf
            overflow = overflow or (bad_first is not None and bad_first[1])
            grads = [[None if g is None else (g * scale).double() / scale for g in gs] for gs in grads]
        skipped = overflow or any(bad) or (bad_first is not None and bad_first[0])
        self._compare(before, grads, skipped)
        self.t += 1

    def _ascend(self) -> tuple[bool, bool] | None:
        """``first_step()``; whether that skips the step, with ``skip_nonfinite`` and with a scaler."""
        rows = [(p, a) for ps, a in zip(self.params, self.groups, strict=True) for p in ps]
        thetas = [p.detach().double().clone() for p, _ in rows]
        if self.groups[0]["perturbation"] == "random":
            self.optimizer.first_step()
            moved = [(p.detach().double() - theta, a["rho"]) for (p, a), theta in zip(rows, thetas, strict=True)]
            known = all(theta.isfinite().all() for theta in thetas) and any(theta.numel() for theta in thetas)
            plain = all(a["rho"] > 0 and not a["adaptive"] and p.dtype == torch.float64 for p, a in rows)
            if plain and known:
                length = sum(float((e / rho).square().sum()) for e, rho in moved) ** 0.5
                assert abs(length - 1) < 1e-9, f"|e| / rho should be 1, is {length}"
            return False, any(
                a["adaptive"] and not theta.isfinite().all() for (_, a), theta in zip(rows, thetas, strict=True)
            )
        grads = [g for gs in self._draw_gradients() for g in gs]
        chosen = [i for i, g in enumerate(grads) if g is not None]
        if not chosen:
            return None
        for (p, _), g in zip(rows, grads, strict=True):
            p.grad = g
        self.optimizer.first_step(zero_grad=self.rng.random() < 0.5)
        lists = [thetas[i] for i in chosen], [grads[i].double() for i in chosen], [rows[i][1] for i in chosen]
        norm = self.oracle.norm(*lists)
        moves = dict(zip(chosen, self.oracle.perturbations(norm, *lists), strict=True))
        # one norm for all: as accurate as the least accurate dtype
        norm_eps = max(torch.finfo(opmath_dtype(rows[i][0].dtype)).eps for i in chosen)
        for i, ((p, a), theta) in enumerate(zip(rows, thetas, strict=True)):
            e = moves.get(i, torch.zeros_like(theta))
            scale = theta.abs() + e.abs() * (norm_eps / torch.finfo(opmath_dtype(p.dtype)).eps)
            self._close(p.detach(), theta + e, scale, STEP_ULPS, f"theta + e, rho {a['rho']}, shape {tuple(p.shape)}")
        bad = any(rows[i][1]["skip_nonfinite"] and not grads[i].isfinite().all() for i in chosen)
        return bad, not norm < torch.inf

    def _compare(self, before: list[list[Tensor]], grads: list[list[Tensor | None]], skipped: bool) -> None:
        drawn = self._due("random")
        for i, a in enumerate(self.groups):
            lr = float(a["lr"])
            self.largest_lr[i] = max(self.largest_lr[i], lr)
            if i in drawn:
                self.refreshed[i] = self.t
            for p, theta, g, memory in zip(self.params[i], before[i], grads[i], self.memory[i], strict=True):
                saved, what = self._saved(p), f"step {self.t}, group {i}, shape {tuple(p.shape)}, {p.dtype}"
                if i in drawn:  # a function of the seed that the oracle does not know
                    memory.flat = saved.get("flat_mask", memory.flat).clone()
                if g is None or skipped:
                    unchanged = Step(theta, theta * 0, memory.moments, {})
                    self._check(p, a, unchanged, saved, 0.0, f"{what}: not stepped")
                    assert self.base == "SGD" or saved.get("step", 0) == memory.steps, f"{what}: counts a step not made"
                    continue
                n = memory.flat if self.t >= a["warmup_steps"] else torch.zeros_like(memory.flat)
                gain = self.oracle.gain(n, a, lr, self.largest_lr[i])
                rule = self.oracle.adamw if self.base == "AdamW" else self.oracle.sgd
                direction = -g.double() if a["maximize"] else g.double()
                expected = rule(theta, direction, memory, a, lr, gain)
                memory.steps += 1
                assert self.base == "SGD" or saved["step"] == memory.steps, f"{what}: {saved['step']} of {memory.steps}"
                # around a foreign optimizer the displacement is a difference of rounded weights
                ulps = STEP_ULPS * (1 + float(gain.max()) if self.foreign and gain.numel() else 1)
                self._check(p, a, expected, saved, ulps, what)
                memory.moments = {key: saved[key].double().clone() for key in expected.moments}
        self._rank_second_moment()
        for i, memories in enumerate(self.memory):
            for p, memory in zip(self.params[i], memories, strict=True):
                mask = self._saved(p).get("flat_mask", torch.zeros(p.shape, dtype=torch.bool))
                assert torch.equal(mask, memory.flat), f"step {self.t}: mask of group {i}, {self.groups[i]}"

    def _rank_second_moment(self) -> None:
        due = self._due("second_moment")
        if not due:
            return
        scores = {
            i: [None if "exp_avg_sq" not in self._saved(p) else self._saved(p)["exp_avg_sq"].double() for p in ps]
            for i, ps in enumerate(self.params)
            if self.groups[i]["curvature"] == "second_moment"
        }
        if any(s is not None for ss in scores.values() for s in ss):
            self._rank(scores, due)
            for i in due:
                for memory in self.memory[i]:
                    memory.flat &= memory.steps > 0

    def _check(self, p: Tensor, a: dict[str, Any], step: Step, saved: dict[str, Any], ulps: float, what: str) -> None:
        self._close(p.detach(), step.theta, step.scale, ulps, what)
        for key, moment in step.moments.items():
            scale = step.moment_scales.get(key, moment * 0)
            self._close(saved[key], moment, scale, min(ulps, MOMENT_ULPS), f"{what}, {key}")
        if a.get("rounding") == "master" and "master_param" in saved and ulps:
            self._close(saved["master_param"], step.theta, step.scale, ulps, f"{what}, master_param")

    # -- reading -------------------------------------------------------------------------------------------------------

    def _theta(self, p: Tensor, a: dict[str, Any]) -> Tensor:
        """The weight, with what ``rounding`` keeps of it where the weight is the rounding of that."""
        theta = p.detach().double().clone()
        master = self._saved(p).get("master_param") if a.get("rounding") == "master" else None
        return theta if master is None else torch.where(master.to(p.dtype) == p, master.double(), theta)

    def _read(self) -> None:
        """Takes a state dict, which is how a test sees what the optimizer keeps."""
        state_dict = self.optimizer.state_dict()
        # masks of parameters without state stand apart from it
        state = {**state_dict["state"], **state_dict["param_groups"][0].get("ire_pending", {})}
        self.entries = {p: state.get(i, {}) for i, p in enumerate(p for ps in self.params for p in ps)}

    def _saved(self, p: Tensor) -> dict[str, Any]:
        """The parameter's entry of the state dict last read."""
        return self.entries[p]

    def _close(self, actual: Tensor, expected: Tensor, scale: Tensor, ulps: float, what: str) -> None:
        """Within one rounding to the tensor's dtype, and ``ulps`` of the arithmetic's dtype of the scale."""
        unit = torch.finfo(opmath_dtype(actual.dtype)).eps / torch.finfo(actual.dtype).eps
        try:
            assert_within_ulps(actual, expected.to(actual.dtype), 1.0 if ulps else 0.0, scale=ulps * unit * scale)
        except AssertionError as error:
            raise AssertionError(f"{self.name}, {what}: {error}") from error


def fuzz(rng: Random, name: str, oracle: Oracle) -> None:
    """One run of at most six steps."""
    run = FuzzedRun(rng, name, oracle)
    for _ in range(rng.randint(2, 6)):
        run.event()
        run.refresh()
        if rng.random() < 0.3:
            run.event()  # with a mask that no step has used so far
        run.step()
