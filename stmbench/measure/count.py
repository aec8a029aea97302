"""Multiply-accumulates by consensus: a closed form, and two counters that know nothing of it.

Counter 1 is fvcore's walk over a TorchScript trace, counter 2 torch's FlopCounterMode under the dispatcher,
both with the operators they lack added (`stmbench.measure.operators`). Both look at one image on a copy of
the network in float32 on the CPU, in eval mode, uncompiled, its mixers by their plain backend, without the
fast path of `nn.MultiheadAttention`, which hides its operators. The mode beside counter 2 counts element-wise
work, notes operators nobody has a formula for, and adds up the bytes that eager execution reads and writes.
"""

import contextlib
import copy
import itertools
import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from torch.utils.module_tracker import ModuleTracker

from stmbench.measure import operators
from stmbench.mixers import backends
from stmbench.nn.backbone import Backbone
from stmbench.nn.detector import Pyramid
from stmbench.record import Macs

with warnings.catch_warnings():  # fvcore scripts functions on import, which newer torch warns of
    warnings.simplefilter("ignore")
    from fvcore.nn import FlopCountAnalysis

Shape = tuple[int, int, int]
Tally = Mapping[str, Counter[str]]  # by module ("" is the whole), then by operator or family of operators
TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class Part:
    """The MACs of one part of a network on one image, by up to three accounts."""

    name: str
    declared: int | None  # the closed form's `Macs.computed`
    traced: Mapping[str, int]  # counter 1, by family of operators
    dispatched: Mapping[str, int]  # counter 2; linear layers are products there
    uncounted: Mapping[str, int]  # calls of operators nobody has a formula for

    @property
    def fvcore(self) -> int:
        return sum(self.traced.values())

    @property
    def flop_counter(self) -> int:
        return sum(self.dispatched.values())

    @property
    def macs(self) -> int:
        """The closed form's number, or counter 1's where there is none."""
        return self.fvcore if self.declared is None else self.declared

    @property
    def disagreement(self) -> float:
        """The largest difference between two of the accounts, as a share of the larger of the two."""
        accounts = {self.macs, self.fvcore, self.flop_counter}
        return 1 - min(accounts) / max(accounts) if max(accounts) else 0.0

    def __str__(self) -> str:
        accounts = {"closed form": self.declared, "fvcore": self.fvcore, "FlopCounterMode": self.flop_counter}
        text = ", ".join(f"{name} {macs:,}" for name, macs in accounts.items() if macs is not None)
        text = f"{self.name}: {text} MACs"
        return "; ".join([text, *self._suspects()])

    def _suspects(self) -> Iterator[str]:
        """The families the counters differ on, and what they may both have missed."""
        traced = Counter(self.traced)
        traced["product"] += traced.pop("linear", 0)
        for name in sorted(traced.keys() | self.dispatched.keys()):
            one, two = traced[name], self.dispatched.get(name, 0)
            if one != two:
                yield f"{name} {one:,} against {two:,}"
        if self.uncounted:
            yield "nobody counted " + ", ".join(f"{name} ({n})" for name, n in self.uncounted.items())


@dataclass(frozen=True, slots=True)
class Count:
    """What one image costs a network: the whole, its parts, and the work that is no MACs."""

    total: Part
    parts: tuple[Part, ...]
    elementwise: int  # operations; see `operators.operations`

    @property
    def macs(self) -> int:
        """MACs that are computed: the closed form's, or counter 1's where there is none."""
        return self.total.macs

    @property
    def disagreement(self) -> float:
        """The largest of all parts and the whole, as a share."""
        return max(part.disagreement for part in (self.total, *self.parts))

    def check(self) -> None:
        """RuntimeError that names parts, numbers and operators where accounts are more than 1 % apart."""
        if self.disagreement <= TOLERANCE:
            return
        worst = sorted((*self.parts, self.total), key=lambda part: part.disagreement, reverse=True)
        apart = [str(part) for part in worst if part.disagreement > TOLERANCE]
        more = [f"and {len(apart) - 3} more"] if len(apart) > 3 else []
        raise RuntimeError(
            f"The accounts of the MACs are up to {self.disagreement:.1%} apart. "
            + " | ".join(apart[:3] + more)
        )


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that one eager forward pass of one image reads and writes, operator by operator.

    What a fused or compiled kernel keeps to itself is counted here all the same. `weights` are parameters and
    buffers, read once whatever the batch; `activations` grow with it.
    """

    weights: int
    activations: int


def declared(model: nn.Module, height: int, width: int) -> dict[str, Macs]:
    """The closed form by part, for an image of `height` x `width` pixels; empty for a network without one."""
    return model.macs(height, width) if _declares(model) else {}


def _declares(model: nn.Module) -> TypeGuard[Backbone | Pyramid]:
    return isinstance(model.backbone if isinstance(model, Pyramid) else model, Backbone)


def count(model: nn.Module, shape: Shape) -> Count:
    """Count the MACs of one image (C, H, W) by every account there is. The model stays as it is.

    Raises:
        RuntimeError: the network does not run on the CPU, or cannot be traced.
    """
    with _eager_copy(model) as net:
        image = torch.zeros(1, *shape)
        dispatched, seen = _dispatch(net, image)
        traced, hidden = _trace(net, image)
    modules = {*hidden, *seen.uncounted}
    uncounted = {name: hidden.get(name, Counter()) | seen.uncounted[name] for name in modules}
    accounts = (traced, dispatched, uncounted)
    forms = declared(net, *shape[1:])
    parts = [
        Part(
            name,
            forms[name].computed if forms else None,
            *(sum((_within(tally, net, each) for each in names), Counter()) for tally in accounts),
        )
        for name, names in _parts(net).items()
    ]
    closed = sum(forms.values(), Macs(0)).computed if forms else None
    total = Part("total", closed, *(tally.get("", Counter()) for tally in accounts))
    return Count(total, tuple(part for part in parts if part.macs or part.disagreement), seen.elementwise)


def _parts(model: nn.Module) -> dict[str, list[str]]:
    """The modules that make up each part: as the closed form has them, else the network's children."""
    if _declares(model):
        return model.parts()
    if len([*model.named_parameters(remove_duplicate=False)]) > len([*model.parameters()]):
        return {}  # the counters do not agree on whose a shared layer is
    return {name: [name] for name, _ in model.named_children()}


def traffic(model: nn.Module, shape: Shape, dtype: torch.dtype = torch.float32) -> Traffic:
    """The bytes that one eager forward pass of one image (C, H, W) reads and writes.

    Any other `dtype` than float32 is autocast: every pass casts the weights, and norms stay in float32.
    """
    image = torch.zeros(1, *shape)
    cast = torch.autocast("cpu", dtype) if dtype != torch.float32 else contextlib.nullcontext()
    with _eager_copy(model) as net, cast, _Observer(net) as seen:
        net(image)
    return Traffic(weights=seen.weights, activations=seen.activations)


@contextlib.contextmanager
def _eager_copy(model: nn.Module) -> Iterator[nn.Module]:
    """A copy that shows its operators to whoever watches it run."""
    # Of a compiled model the original; modules compiled in place are copied as they were before.
    net = copy.deepcopy(getattr(model, "_orig_mod", model))
    net = net.cpu().float().eval().requires_grad_(False)
    backends.force(net, backends.PLAIN)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns of the sizes it fixes; one image is all it is for
            yield net
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _trace(model: nn.Module, image: Tensor) -> tuple[Tally, Tally]:
    """Counter 1, and the calls of functions that a trace cannot look into."""
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    analysis = FlopCountAnalysis(model, image).clear_op_handles().set_op_handle(**operators.TRACED)
    analysis = (
        analysis.ancestor_mode("caller").unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    )
    counts = analysis.by_module_and_operator()
    hidden = {
        module: Counter(
            {name.split(".")[-1].split("::")[-1]: n for name, n in calls.items() if name.startswith("prim::")}
        )
        for module in counts
        if (calls := analysis.unsupported_ops(module))
    }
    return counts, hidden


def _dispatch(model: nn.Module, image: Tensor) -> tuple[Tally, "_Observer"]:
    """Counter 2, and what was seen beside it."""
    counter = FlopCounterMode(display=False, custom_mapping=operators.dispatched())
    with _Observer(model) as seen, counter:
        model(image)
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for module, calls in counter.get_flop_counts().items():
        if (name := _local(module, model)) is None:
            continue
        for packet, flops in calls.items():
            if flops:
                counts[name][operators.family(packet.__name__)] += flops // 2
    return counts, seen


class _Observer(TorchDispatchMode):
    """Watches a forward pass for element-wise work, unknown operators, and bytes moved."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.elementwise = self.weights = self.activations = 0
        self.uncounted: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._model = model
        learnt = itertools.chain(model.parameters(), model.buffers())
        self._learnt = {tensor.untyped_storage().data_ptr() for tensor in learnt}
        self._casts: list[Tensor] = []  # of weights; held, so that nothing else comes to lie there
        self._counted = operators.dispatched().keys() | flop_registry.keys()
        self._products = operators.Products()
        self._tracker = ModuleTracker()

    def __enter__(self) -> "_Observer":
        self._tracker.__enter__()
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        self._tracker.__exit__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._note_work(func, args, out)
        if func is torch.ops.aten._to_copy.default and self._is_learnt(args[0]):
            self._casts.append(out)
            self._learnt.add(out.untyped_storage().data_ptr())
        if not operators.is_free(func):
            self._note_traffic(tree_leaves((args, kwargs, out)))
        return out

    def _note_work(self, func: Any, args: Any, out: Any) -> None:
        packet = func.overloadpacket
        if packet in operators.SUMS and args[0] in self._products:
            self.elementwise -= args[0].numel()  # its products were no element-wise work after all
            return
        if packet is operators.MUL:
            self._products.add(out)
        elif packet in self._counted and packet not in operators.SUMS:
            return
        work = operators.operations(func, args, out)
        self.elementwise += work or 0
        if work is None:
            for module in self._tracker.parents:
                if (name := _local(module, self._model)) is not None:
                    self.uncounted[name][operators.name(func)] += 1

    def _note_traffic(self, leaves: list[Any]) -> None:
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                continue
            moved = min(leaf.nbytes, leaf.untyped_storage().nbytes())  # less where views overlap
            if self._is_learnt(leaf):
                self.weights += moved
            else:
                self.activations += moved

    def _is_learnt(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._learnt


def _local(tracked: str, model: nn.Module) -> str | None:
    """The name of a tracked module within the model; None for the model itself and for strangers."""
    if tracked == "Global":
        return ""
    root = type(model).__name__ + "."
    return tracked.removeprefix(root) if tracked.startswith(root) else None


def _within(tally: Tally, model: nn.Module, name: str) -> Counter[str]:
    """The tally of a module, or of those in it where it only holds them and is never called itself."""
    if tally.get(name):
        return Counter(tally[name])
    children = model.get_submodule(name).named_children()
    return sum((_within(tally, model, f"{name}.{child}") for child, _ in children), Counter())
