"""What is timed: every method here with its branches, torch's own optimizers, and public implementations. One table.

A row says how its optimizer is made, on which numbers it steps, and which row of ours, in float64, it has to follow.
Packages that are not installed leave their rows out; nothing of them is imported before a row is made.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import mooring as mo
from mooring.bench.branches import Branch
from mooring.finetune.errors import SpecError, suggestion

Named = Sequence[tuple[str, Tensor]]
BASELINE = "torch.adamw-fused"
ADAMW_BYTES = 28
"""Of fused AdamW per float32 element: p, g, m, v read and p, m, v written."""
SLACK = 1.10
RANDOM = Branch()


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        id: what the command line calls it; ``family-branch``, or ``package.family-branch`` for what is not ours.
        family: the method.
        make: an optimizer for named parameters at a learning rate.
        branch: the numbers it steps on.
        package: whose it is.
        like: the id of our row whose float64 step it has to follow; its own where it is ours.
        dtype: of weights and gradients.
        traffic: bytes per element of this branch, where a branch needs less than the most that ``mooring.cost``
            declares for the recipe; None takes what that declares.
        again: bytes more for each element whose tensor is pulled back.
        limit: the target where it is not 1.10 times traffic over AdamW's 28 bytes: by name of the shapes, ``""`` for
            all others.
        launch: whether its overhead per step and per tensor is measured.
    """

    id: str
    family: str
    make: Callable[[Named, float], torch.optim.Optimizer]
    branch: Branch = RANDOM
    package: str = "mooring"
    like: str = ""
    dtype: torch.dtype = torch.float32
    traffic: float | None = None
    again: float = 0.0
    limit: dict[str, float] = field(default_factory=dict)
    launch: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is of this package, runs on its backends and has a target."""
        return self.package == "mooring"

    @property
    def reference(self) -> str:
        """The id of the row whose float64 step is the right one."""
        return self.like or self.id

    def target(self, shapes: str, declared: float) -> float:
        """The most times fused AdamW's time that it should take."""
        return self.limit.get(shapes, self.limit.get("", SLACK * declared / ADAMW_BYTES))


def _ours(cls: str, **options: Any) -> Callable[[Named, float], torch.optim.Optimizer]:
    def make(params: Named, lr: float) -> torch.optim.Optimizer:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            # What is timed is a whole model, also where it is one matrix.
            made: torch.optim.Optimizer = getattr(mo, cls)(list(params), lr=lr, one_parameter=True, **options)
        return made

    return make


def _lamb(params: Named, lr: float) -> torch.optim.Optimizer:
    return mo.Adam(list(params), lr=lr, rules=[mo.DecoupledDecay(1e-2), mo.TrustRatio()])


def _composed(params: Named, lr: float) -> torch.optim.Optimizer:
    rules = [mo.RadialProjection(), mo.StableDecay(1e-4, toward="anchor"), mo.TrustRatio(), mo.SelectiveProjection(1.0)]
    return mo.Adam(list(params), lr=lr, rules=rules, one_parameter=True)


def _theirs(package: str, cls: str, **options: Any) -> Callable[[Named, float], torch.optim.Optimizer]:
    def make(params: Named, lr: float) -> torch.optim.Optimizer:
        module = importlib.import_module("torch.optim" if package == "torch" else package)
        made: torch.optim.Optimizer = getattr(module, cls)([p for _, p in params], lr=lr, **options)
        return made

    return make


ROWS, TENSOR, NONE = Branch("rows"), Branch("tensor"), Branch("along")
_ADAM: dict[str, Any] = {"weight_decay": 1e-2}
_SGD: dict[str, Any] = {"momentum": 0.9, "weight_decay": 1e-4}
_STABLE: dict[str, Any] = {"weight_decay": 1e-4}
# pytorch_optimizer adds eps before the bias correction; so small it shows nowhere.
_EPS: dict[str, Any] = {"eps": 1e-12}
# A tensor that is larger than the cache is scanned (p, g) before it is updated; only where it is projected as a whole
# does the update itself take the two runs that `mooring.cost` declares.
_SCANNED = 28 + 8


def _spd(share: float) -> dict[str, Any]:
    """Reads the anchor beside AdamW's traffic; pulled back tensors are run over again: p and a read, p written."""
    return {"branch": Branch(contracted=share), "traffic": 28 + 4, "again": 12}


_TABLE = (
    Method("adamw", "adamw", _ours("AdamW", **_ADAM), limit={"": 1.0, "small-3000": 0.5}, launch=True),
    Method("adamw-clip", "adamw", _ours("AdamW", max_grad_norm=1.0, **_ADAM)),
    Method("adamp-rows", "adamp", _ours("AdamP", **_ADAM), ROWS, traffic=_SCANNED, limit={"small-3000": 0.8},
           launch=True),
    Method("adamp-tensor", "adamp", _ours("AdamP", **_ADAM), TENSOR, limit={"small-3000": 0.8}),
    Method("adamp-none", "adamp", _ours("AdamP", **_ADAM), NONE, traffic=_SCANNED, limit={"small-3000": 0.8}),
    Method("lamb", "lamb", _lamb, launch=True),
    Method("adams", "adams", _ours("AdamS", **_STABLE), launch=True),
    Method("adams-clip", "adams", _ours("AdamS", max_grad_norm=1.0, **_STABLE)),
    Method("adamspd-0", "adamspd", _ours("AdamSPD", anchor="given"), launch=True, **_spd(0.0)),
    Method("adamspd-half", "adamspd", _ours("AdamSPD", anchor="given"), **_spd(0.5)),
    Method("adamspd-1", "adamspd", _ours("AdamSPD", anchor="given"), **_spd(1.0)),
    Method("adamspd-bf16-anchor", "adamspd", _ours("AdamSPD", anchor="given", anchor_store="bfloat16"),
           Branch(contracted=1.0), traffic=28 + 2, again=10),
    Method("all-rules", "all-rules", _composed, Branch("rows", 1.0), launch=True),
    Method("adai", "adai", _ours("Adai", **_STABLE)),
    Method("adais", "adai", _ours("AdaiS", **_STABLE)),
    Method("sgd", "sgd", _ours("SGD", **_SGD), launch=True),
    Method("sgdp-rows", "sgdp", _ours("SGDP", **_SGD), ROWS, launch=True),
    Method("sgdp-none", "sgdp", _ours("SGDP", **_SGD), NONE),
    Method("sgds", "sgds", _ours("SGDS", **_SGD)),
    Method("sgdspd-0", "sgdspd", _ours("SGDSPD", anchor="given", momentum=0.9), Branch(contracted=0.0)),
    Method("adamw-bf16", "adamw-bf16", _ours("AdamW", **_ADAM), dtype=torch.bfloat16),
    Method("adamw-bf16-stochastic", "adamw-bf16", _ours("AdamW", rounding="stochastic", **_ADAM), dtype=torch.bfloat16),
    Method("adamw-bf16-kahan", "adamw-bf16", _ours("AdamW", rounding="kahan", **_ADAM), dtype=torch.bfloat16),
    Method(BASELINE, "adamw", _theirs("torch", "AdamW", fused=True, **_ADAM), package="torch", like="adamw",
           launch=True),
    Method("torch.adamw-foreach", "adamw", _theirs("torch", "AdamW", foreach=True, **_ADAM), package="torch",
           like="adamw", launch=True),
    Method("torch.sgd-fused", "sgd", _theirs("torch", "SGD", fused=True, **_SGD), package="torch", like="sgd",
           launch=True),
    Method("torch.sgd-foreach", "sgd", _theirs("torch", "SGD", foreach=True, **_SGD), package="torch", like="sgd",
           launch=True),
    *(
        Method(f"{package}.{like}", like.split("-")[0], _theirs(package, cls, **options), branch, package, like,
               launch=branch is ROWS)
        for package, adam in (("adamp", _ADAM), ("pytorch_optimizer", {**_ADAM, **_EPS}))
        for cls, like, branch, options in (
            ("AdamP", "adamp-rows", ROWS, adam),
            ("AdamP", "adamp-tensor", TENSOR, adam),
            ("AdamP", "adamp-none", NONE, adam),
            ("SGDP", "sgdp-rows", ROWS, _SGD),
        )
    ),
    *(
        Method(f"pytorch_optimizer.{like}", like, _theirs("pytorch_optimizer", cls, **_STABLE, **options),
               package="pytorch_optimizer", like=like, launch=like == "adams")
        for cls, like, options in (
            ("AdamS", "adams", {}),
            ("Adai", "adais", {"stable_weight_decay": True, "weight_decouple": True}),
        )
    ),
)  # fmt: skip
METHODS: dict[str, Method] = {row.id: row for row in _TABLE}
QUICK = (
    "adamw", "adamp-rows", "adamp-tensor", "adamp-none", "adams", "adamspd-0", "adamspd-half", "adamspd-1", "all-rules",
    "sgd", "adamw-bf16-kahan", "torch.adamw-foreach", "torch.sgd-fused", "adamp.adamp-rows",
)  # fmt: skip


def installed(method: Method) -> bool:
    """Whether the package of a row is there."""
    return method.package == "mooring" or importlib.util.find_spec(method.package) is not None


def version(package: str) -> str:
    """The installed version of a package, "" for none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def parse_methods(text: str | None, *, quick: bool) -> list[Method]:
    """Rows by id, by family, or by package, separated by commas; all, or those of the quick look, without a text.

    Raises:
        SpecError: for a name that is none of these.
    """
    if text is None:
        return [METHODS[name] for name in QUICK] if quick else list(METHODS.values())
    chosen: dict[str, Method] = {}
    names = [part.strip().lower() for part in text.split(",") if part.strip()]
    if not names:
        raise SpecError(f"--methods names no method: {text!r}; the methods are {', '.join(METHODS)}")
    for name in names:
        found = [m for m in METHODS.values() if name in (m.id, m.family, m.package)]
        if name in METHODS:
            found = [METHODS[name]]
        if not found:
            every = [*METHODS, *(m.family for m in METHODS.values()), *(m.package for m in METHODS.values())]
            raise SpecError(
                f"--methods: unknown method {name!r}{suggestion(name, every)}; the methods are {', '.join(METHODS)}, "
                "and a family (adamp) or a package (torch) names all of its rows"
            )
        chosen.update((m.id, m) for m in found)
    return list(chosen.values())


def declared_bytes(method: Method, optimizer: Any, contracted: float) -> float:
    """Bytes per element that a step of one of our rows moves, by ``mooring.cost`` or the branch's own traffic.

    Args:
        method: the row.
        optimizer: what it makes.
        contracted: the share of the elements whose tensors are pulled back.
    """
    return cost_bytes(optimizer) if method.traffic is None else method.traffic + method.again * contracted


def cost_bytes(optimizer: Any) -> float:
    """The most bytes per element that the recipe's stages read and write: ``mooring.cost`` times element sizes."""
    [group] = optimizer.param_groups
    p = group["params"][0]
    wide = max(p.dtype.itemsize, 4)
    state = 2 if group.get("state_dtype") == "bfloat16" and wide == 4 else wide
    anchor = 2 if group.get("anchor_store") == "bfloat16" else p.dtype.itemsize
    sizes = {"weights": p.dtype.itemsize, "gradient": p.dtype.itemsize, "anchor": anchor, "compensation": 2}
    [found] = mo.cost(optimizer)
    names = [name for sweep in found.sweeps for name in (*sweep.reads, *sweep.writes)]
    return float(sum(sizes.get(name, state) for name in names))
