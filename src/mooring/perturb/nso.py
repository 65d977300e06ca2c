"""NSO: Zhang, Li and Ju, TMLR 2024.

"Noise Stability Optimization for Finding Flat Minima: A Hessian-based Regularization Approach", arXiv 2306.08553.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from mooring.kernels import random
from mooring.optim.around import required
from mooring.perturb.frame import Perturbed, Stage, check_size
from mooring.perturb.noise import LAWS, draw, row_sizes, shake
from mooring.perturb.replicas import replica
from mooring.perturb.weights import Member

SCHEDULES = ("constant", "linear", "log")


class NSO(Perturbed):
    """Noise stability optimization around any torch optimizer (arXiv 2306.08553).

    The gradient that the base optimizer sees is::

        g = clean * g(W) + (1 - clean) / (2 k) * sum_{j <= k} [ g(W + U_j) + g(W - U_j) ],    U_j ~ sigma * P

    an estimate of the gradient of ``E f(W + U)``, which to second order is ``f + sigma^2/2 tr H``. The pair of points
    cancels the term of first order, so its variance is O(sigma^4); one point keeps it.

    Every step costs 2k gradients (k with ``two_point=False``; one more where ``0 < clean < 1``), one copy of the
    weights, and for every pass one draw of noise and two writes of the weights. Noise is never stored: it belongs to
    (seed, step, draw, parameter, element), so every sharding and every resumed run sees the same.

    Args:
        base: any torch optimizer. Its groups get the options ``sigma``, ``noise_seed`` and ``noise_draws``.
        sigma: standard deviation of the noise. 0 takes the base's own step, to the bit. A group may have its own.
        k: draws per step.
        two_point: evaluate at W + U and W - U. With False, ``(1 - clean) / k * sum g(W + U_j)``; as many gradients as
            two points take 2k draws.
        clean: weight of the gradient at W itself, in [0, 1]; 1 takes the base's own step.
        noise: ``"normal"``, ``"laplace"`` or ``"uniform"``, each of mean zero and variance ``sigma ** 2``.
        relative: sigma is a fraction of each row's root mean square (of the whole tensor's for vectors).
        schedule: ``"constant"``; ``"linear"`` from 0 to sigma, or ``"log"`` from 1e-5 to sigma, over
            ``schedule_steps`` steps.
        schedule_steps: the length of the schedule.
        fresh_batches: every pair may see a mini-batch of its own (``pass_.new_batch`` says when).
        per_rank: every copy of the model that data parallelism trains draws noise of its own, so that W copies act as
            k * W draws at the cost of k. A copy is a process of DDP, or under HSDP (``fully_shard`` on a mesh of
            replicas of shards) the processes that hold the shards of one; among themselves these draw the same. A
            resumed run goes on exactly with as many copies.
        seed: of the noise.
        model: the module; needed for running statistics, DDP's ``no_sync`` and sharded weights.
        clean_forward: where no pass is at W itself and the model keeps running statistics, add one forward pass (no
            backward) that updates them.

    Raises:
        TypeError: if base is no optimizer.
        ValueError: for an option out of range, or ``per_rank`` where no dimension of a mesh replicates every weight
            (FSDP on one dimension, tensor parallelism): there one copy lies on all processes and has one noise.

    Example:
        >>> import torch, mooring as mo
        >>> model = torch.nn.Linear(4, 1)
        >>> nso = mo.NSO(mo.AdamW(model.parameters(), lr=1e-2), sigma=0.01, k=1)
        >>> def closure():
        ...     nso.zero_grad()
        ...     loss = model(torch.ones(8, 4)).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> loss = nso.step(closure)
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        sigma: float = 0.01,
        k: int = 1,
        *,
        two_point: bool = True,
        clean: float = 0.0,
        noise: str = "normal",
        relative: bool = False,
        schedule: str = "constant",
        schedule_steps: int | None = None,
        fresh_batches: bool = False,
        per_rank: bool = False,
        seed: int = 0,
        model: nn.Module | None = None,
        clean_forward: bool = True,
    ) -> None:
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise ValueError(f"k must be an integer >= 1, got {k!r}")
        if not 0 <= clean <= 1:
            raise ValueError(f"clean must be in [0, 1], got {clean!r}")
        if noise not in LAWS:
            raise ValueError(
                f"noise must be one of {', '.join(map(repr, LAWS))}, got {noise!r}; noise of its own for every process "
                "of data parallelism is per_rank=True"
            )
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(map(repr, SCHEDULES))}, got {schedule!r}")
        if (schedule != "constant") != (schedule_steps is not None):
            raise ValueError(
                f"schedule_steps must be given with schedule='linear' or 'log' and only then, got "
                f"schedule={schedule!r}, schedule_steps={schedule_steps!r}"
            )
        if schedule_steps is not None and not (isinstance(schedule_steps, int) and schedule_steps >= 1):
            raise ValueError(f"schedule_steps must be an integer >= 1, got {schedule_steps!r}")
        if per_rank:
            replica(required(base).param_groups, model)  # raises where there are no copies to tell apart
        config = dict(
            k=k,
            two_point=two_point,
            clean=clean,
            noise=noise,
            relative=relative,
            schedule=schedule,
            schedule_steps=schedule_steps,
            fresh_batches=fresh_batches,
            per_rank=per_rank,
        )
        super().__init__(base, {"sigma": sigma}, model=model, seed=seed, clean_forward=clean_forward, config=config)

    @override
    def _check_group(self, group: dict[str, Any]) -> None:
        check_size(group, "sigma")

    @override
    def _stages(self) -> list[Stage]:
        c = self._config
        clean = c["clean"]
        if clean == 1 or all(group["sigma"] == 0 for group in self.param_groups):
            return [Stage()]
        stages = [Stage(weight=clean)] if clean > 0 else []
        signs = (1.0, -1.0) if c["two_point"] else (1.0,)
        weight = (1 - clean) / (len(signs) * c["k"])
        for j in range(c["k"]):
            stages += [
                Stage(partial(self._place, j, sign), weight, draws=j + 1, new_batch=c["fresh_batches"] and sign > 0)
                for sign in signs
            ]
        return stages

    def _place(self, j: int, sign: float) -> None:
        step = self.param_groups[0]["noise_draws"]
        copy = replica(self.param_groups, self.model) if self._config["per_rank"] else 0

        law = self._config["noise"]
        whose: dict[int, int] = {}  # a group's seed is mixed once, and each name after it

        def noise(member: Member) -> tuple[int, float]:
            group = member.group
            if id(group) not in whose:
                whose[id(group)] = random.key("nso", group["noise_seed"], step, j, copy)
            return random.key(member.name, after=whose[id(group)]), sign * self._sigma(group, step)

        def offset(member: Member, wide: Tensor) -> Tensor | None:
            seed, scale = noise(member)
            if scale == 0:
                return None
            drawn = draw(member, law, seed, scale)
            return drawn.mul_(row_sizes(member, wide)) if self._config["relative"] else drawn

        self._weights.place(offset, None if self._config["relative"] else partial(shake, law=law, noise=noise))

    def _sigma(self, group: dict[str, Any], step: int) -> float:
        """The standard deviation at a step, counted from 0."""
        sigma, length = float(group["sigma"]), self._config["schedule_steps"]
        if length is None:
            return sigma
        done = min(step / max(length - 1, 1), 1.0) if length > 1 else 1.0
        if self._config["schedule"] == "linear":
            return sigma * done
        return float(1e-5 ** (1 - done) * sigma**done) if sigma > 0 else 0.0

    @override
    def _describe(self) -> str:
        c = self._config
        sigmas = sorted({f"{group['sigma']:g}" for group in self.param_groups})
        shown = {"k": 1, "two_point": True, "clean": 0.0, "noise": "normal", "relative": False, "schedule": "constant"}
        changed = "".join(f", {name}={c[name]}" for name, default in shown.items() if c[name] != default)
        return f"NSO(sigma={'/'.join(sigmas)}{changed}; {self.gradients_per_step} gradients per step)"
