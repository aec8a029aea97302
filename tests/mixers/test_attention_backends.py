"""The backends of the attention mixers: each equals the oracle with all gradients; which is chosen where."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
from torch import Tensor, nn

from stmbench.mixers import attention, backends
from stmbench.mixers.backends import BackendMixer, BackendWarning, Call
from stmbench.mixers.halo import HaloAttention
from stmbench.mixers.sra import SpatialReductionAttention
from stmbench.mixers.swin import ShiftedWindowAttention

MIXERS: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], Tensor]]] = {
    "halo": (lambda: HaloAttention(8, num_heads=2), oracles.halo),
    "swin": (lambda: ShiftedWindowAttention(8, num_heads=2, shift=0), oracles.swin),
    "swin shifted": (lambda: ShiftedWindowAttention(8, num_heads=2, shift=3), oracles.swin),
    "halo 4": (lambda: HaloAttention(8, num_heads=2, window=4), oracles.halo),
    "swin 4": (lambda: ShiftedWindowAttention(8, num_heads=2, shift=2, window=4), oracles.swin),
    "sra 1": (lambda: SpatialReductionAttention(8, num_heads=2, reduction=1), oracles.sra),
    "sra 4": (lambda: SpatialReductionAttention(8, num_heads=2, reduction=4), oracles.sra),
}
NAMES = {
    "halo": ["chunked", "augmented", "sdpa", "plain"],
    "swin": ["copied", "chunked", "sdpa", "plain"],
    "sra": ["patches", "sdpa", "plain"],
}
CASES = [(name, backend) for name in MIXERS for backend in NAMES[name.split()[0]]]
SIZES = [(1, 1), (3, 5), (15, 8), (14, 14)]
PLACE = Call("cpu", torch.float32, (8, 56, 56, 96), grad=True, compiling=False, exporting=False)


def make(name: str, backend: str = "") -> Any:
    torch.manual_seed(0)
    mixer = MIXERS[name][0]()
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.5)
    mixer.forced = backend
    return mixer


def every_gradient(mixer: Any, x: Tensor, out: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    return [out, *torch.autograd.grad(out, [x, *mixer.parameters()], torch.randn_like(out))]


@functools.cache
def wanted(name: str, size: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
    """An input, and the oracle's output and gradients: slow, and the same for every backend."""
    mixer = make(name).double()
    x = torch.randn(1, *size, mixer.dim, dtype=torch.float64, requires_grad=True)
    return x, every_gradient(mixer, x, MIXERS[name][1](mixer, x))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("name", "backend"), CASES)
def test_each_equals_the_oracle_with_every_gradient(name: str, backend: str, size: tuple[int, int]) -> None:
    mixer = make(name, backend).double()
    x, expected = wanted(name, size)
    assert mixer.backend(x).name == backend
    for ours, theirs in zip(every_gradient(mixer, x, mixer(x)), expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-10 * max(1.0, float(theirs.detach().abs().max()))


@pytest.mark.parametrize("name", ["halo", "swin", "swin shifted"])
def test_portions_of_a_batch_are_as_good_as_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(5, 15, 8, 8, dtype=torch.float64, requires_grad=True)
    mixer, plain = make(name, "chunked").double(), make(name, "plain").double()
    wanted = every_gradient(plain, x, plain(x))
    each = 2 * 8 * 2 * 49 * (49 + 169)  # two images, roughly
    for scratch in (1, each, 2 * each, 10 * each):
        monkeypatch.setattr(attention, "SCRATCH", scratch)
        for ours, theirs in zip(every_gradient(mixer, x, mixer(x)), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_portions_cover_a_batch_evenly() -> None:
    assert attention.portions(5, attention.SCRATCH // 2) == [slice(0, 2), slice(2, 4), slice(4, 6)]
    assert attention.portions(4, attention.SCRATCH // 3) == [slice(0, 2), slice(2, 4)]
    assert attention.portions(2, 2 * attention.SCRATCH) == [slice(0, 1), slice(1, 2)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "backend"), CASES)
def test_autocast_is_close_to_float32(name: str, backend: str, dtype: torch.dtype) -> None:
    mixer = make(name, backend)
    for parameter in mixer.parameters():
        parameter.data *= 0.4
    x = torch.randn(2, 9, 11, mixer.dim)
    with torch.autocast("cpu", dtype):
        out = mixer(x)
    out.sum().backward()
    assert out.dtype == dtype
    want = mixer(x)
    assert (out - want).abs().max() < 0.05 * want.std()
    assert all(parameter.grad.isfinite().all() for parameter in mixer.parameters())


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_each_answers_alike_in_inference_mode(name: str, backend: str) -> None:
    x = torch.randn(2, 8, 15, 8)
    with torch.inference_mode():
        torch.testing.assert_close(make(name, backend)(x), make(name, "plain")(x), rtol=1e-4, atol=1e-4)


CHOICES = [
    ("halo", PLACE, "chunked"),
    ("swin", PLACE, "copied"),
    ("swin", PLACE._replace(grad=False), "chunked"),
    ("sra 4", PLACE, "patches"),
    ("sra 4", PLACE._replace(grad=False), "sdpa"),
    ("halo", PLACE._replace(grad=False), "chunked"),
    ("halo", PLACE._replace(shape=(1, 14, 14, 384)), "plain"),
    ("halo", PLACE._replace(shape=(1, 14, 14, 384), grad=False), "sdpa"),
    ("halo", PLACE._replace(dtype=torch.bfloat16), "chunked"),
    ("swin", PLACE._replace(dtype=torch.bfloat16), "plain"),
    ("swin", PLACE._replace(dtype=torch.bfloat16, grad=False), "sdpa"),
    ("halo", PLACE._replace(compiling=True), "sdpa"),
    ("swin", PLACE._replace(compiling=True), "sdpa"),
    ("halo", PLACE._replace(compiling=True, exporting=True), "plain"),
    ("swin", PLACE._replace(compiling=True, exporting=True), "plain"),
    ("sra 1", PLACE._replace(compiling=True, exporting=True), "plain"),
    ("halo", PLACE._replace(device="cuda", dtype=torch.bfloat16), "augmented"),
    ("halo", PLACE._replace(device="cuda"), "sdpa"),
    ("swin", PLACE._replace(device="cuda", dtype=torch.float16), "sdpa"),
    ("sra 4", PLACE._replace(device="cuda", dtype=torch.float16), "sdpa"),
]


@pytest.mark.parametrize(("name", "call", "backend"), CHOICES)
def test_the_choice(name: str, call: Call, backend: str) -> None:
    assert make(name).choose(call).name == backend


@pytest.mark.parametrize("name", MIXERS)
def test_the_plain_backend_is_the_last(name: str) -> None:
    assert make(name).backends[-1].name == backends.PLAIN


@pytest.mark.parametrize("name", ["halo", "swin"])
def test_what_cannot_run_gives_way_to_the_plain_one_and_says_so_once(name: str) -> None:
    mixer, x = make(name, "flex"), torch.randn(1, 9, 9, 8)
    backends._say.cache_clear()
    with pytest.warns(BackendWarning, match="'flex' cannot run"):
        out = mixer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixer(x)
    torch.testing.assert_close(out, make(name, "plain")(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "call", "reason"),
    [
        ("flex", PLACE._replace(compiling=True), "no backward pass on a CPU"),
        ("flex", PLACE._replace(compiling=True, exporting=True), "not exported"),
        ("flex", PLACE._replace(compiling=True, grad=False), ""),
        ("flex", PLACE._replace(device="cuda", compiling=True), ""),
        ("chunked", PLACE._replace(compiling=True), "not compiled"),
    ],
)
def test_reasons(name: str, call: Call, reason: str) -> None:
    for mixer in (make("halo"), make("swin")):
        backend = next(each for each in mixer.backends if each.name == name)
        refusal = backend.refuses(call)
        assert reason in refusal
        assert bool(reason) == bool(refusal)


@pytest.mark.parametrize("name", ["halo", "swin shifted"])
def test_flex_scores_as_the_plain_one_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "refuses_flex", lambda call: "")
    mixer, x = make(name), torch.randn(2, 9, 15, 8)
    flex = next(each for each in mixer.backends if each.name == "flex")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # uncompiled, it says that it is slow
        torch.testing.assert_close(flex.run(mixer, x), make(name, "plain")(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MIXERS)
def test_the_plain_one_is_exported_and_agrees(name: str) -> None:
    mixer: BackendMixer = make(name).eval()
    x = torch.randn(2, 9, 16, 8)
    exported = torch.export.export(mixer, (x,), strict=True).module()
    torch.testing.assert_close(exported(x), make(name, "plain")(x))
