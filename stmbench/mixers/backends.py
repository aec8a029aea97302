"""How a mixer computes: several backends of one operator, and the one place that chooses among them.

A mixer with more than one way lists them in `backends`, the best first. The last is `plain`: the obvious one,
which runs everywhere, which is exported and counted, and which all others must equal but for rounding.
The choice depends on a `Call` alone, so that it can be told before anything is computed, and is made while a
graph is traced, not in it.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from stmbench import catalog

PLAIN = "plain"


class BackendWarning(UserWarning):
    """A backend that was asked for cannot run, and the plain one does."""


class Call(NamedTuple):
    """All that the choice of a backend may depend on.

    A compiled graph is made anew for every answer that depends on the batch, shape[0].
    """

    device: str  # cpu, cuda, ...
    dtype: torch.dtype  # that products are taken in: autocast's, where it is on
    shape: tuple[int, int, int, int]  # (B, H, W, C) of the mixer's input
    grad: bool  # whether a backward pass may follow
    compiling: bool  # torch.compile or torch.export is tracing
    exporting: bool


class Backend(NamedTuple):
    """One way to compute a mixer.

    `run` takes the mixer and whatever the mixer's forward gives it. `refuses` says why it cannot run, or ""
    if it can; `best` says whether it is the fastest there, as measured; `when` says the same to readers.
    """

    name: str
    when: str
    run: Callable[..., Tensor]
    refuses: Callable[[Call], str] = lambda call: ""
    best: Callable[[Call], bool] = lambda call: True


def refuses_batch_loop(call: Call) -> str:
    """For what goes through a batch in Python, on a CPU."""
    if call.device != "cpu":
        return "it is for a CPU"
    # Its loop over the batch would be unrolled: a graph for every batch.
    return "it is not compiled" if call.compiling or type(call.shape[0]) is not int else ""


class BackendMixer(nn.Module):
    """A mixer with several backends; `forced` names the one to use instead of the best."""

    backends: ClassVar[tuple[Backend, ...]]
    forced: str = ""

    def backend(self, x: Tensor) -> Backend:
        """The backend that computes an input (B, H, W, C)."""
        return self.choose(_call(x))

    def choose(self, call: Call) -> Backend:
        """The forced backend, or the first that is best; the plain one where those cannot run."""
        backends = type(self).backends  # by the class: dynamo of torch 2.6 reads no tuple by the instance
        plain = backends[-1]
        for backend in backends:
            if backend.name == self.forced:
                if not (reason := backend.refuses(call)):
                    return backend
                if not torch.compiler.is_compiling():  # a warning would break the graph
                    _say(type(self).__name__, backend.name, reason)
                return plain
            if not self.forced and backend.best(call) and not backend.refuses(call):
                return backend
        return plain


def force(model: nn.Module, name: str) -> None:
    """Have every mixer of a network use one backend; "" for the best. ValueError where a mixer lacks it."""
    mixers = list(_mixers(model))
    known = list(dict.fromkeys(backend.name for mixer in mixers for backend in mixer.backends)) or [PLAIN]
    if name:
        catalog.known("backend", name, known)
    for mixer in mixers:
        mixer.forced = name


def paths(model: nn.Module, images: Tensor, *, batch: int, compiling: bool = False) -> str:
    """The backends that `batch` such images take, joined by "+", under the caller's grad and autocast mode.

    Passes one image (1, C, H, W) through the network, in eval mode, so that no statistics and no random
    numbers are touched.
    """
    taken: set[str] = set()

    def look(mixer: BackendMixer, inputs: tuple[Tensor, ...]) -> None:
        call = _call(inputs[0])
        call = call._replace(shape=(batch, *call.shape[1:]), compiling=compiling)
        taken.add(mixer.choose(call).name)

    handles = [mixer.register_forward_pre_hook(look) for mixer in _mixers(model)]
    training = model.training
    try:
        if handles:
            model.eval()(images)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return "+".join(sorted(taken)) or PLAIN


@contextlib.contextmanager
def fallbacks(told: Callable[[str], object]) -> Iterator[None]:
    """Hand on what is said of backends that cannot run, instead of a warning; other warnings stay."""
    before = warnings.showwarning

    def show(message: Any, category: type[Warning], *where: Any) -> None:
        if issubclass(category, BackendWarning):
            told(str(message))
        else:
            before(message, category, *where)

    with warnings.catch_warnings():
        warnings.simplefilter("always", BackendWarning)
        warnings.showwarning = show
        yield


def _mixers(model: nn.Module) -> Iterator[BackendMixer]:
    return (module for module in model.modules() if isinstance(module, BackendMixer))


def _call(x: Tensor) -> Call:
    device = x.device.type
    B, H, W, C = x.shape
    compiling = torch.compiler.is_compiling()
    return Call(
        device=device,
        dtype=torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype,
        shape=(B, H, W, C),
        grad=torch.is_grad_enabled(),
        compiling=compiling,
        # The strict exporter traces with dynamo, the other one does not say that it compiles in torch 2.6.
        exporting=compiling and getattr(torch.compiler, "is_exporting", lambda: False)(),
    )


@functools.cache
def _say(mixer: str, backend: str, reason: str) -> None:
    warnings.warn(
        f"{mixer}: the backend '{backend}' cannot run ({reason}); the plain one does.",
        BackendWarning,
        stacklevel=5,
    )
