"""The backends of the depthwise convolution: equal to the oracle, chosen where they are best."""

import copy

import oracles
import pytest
import torch
from torch import Tensor, nn

from stmbench.mixers.backends import Call
from stmbench.mixers.dwconv import DepthwiseConv

CALL = Call("cpu", torch.float32, (8, 56, 56, 96), grad=True, compiling=False, exporting=False)


def make(kernel: int, backend: str, dim: int = 8) -> DepthwiseConv:
    torch.manual_seed(0)
    mixer = DepthwiseConv(dim, kernel=kernel)
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.5)
    mixer.forced = backend
    return mixer


def answers(mixer: nn.Module, x: Tensor, out: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    leaves = [x, *mixer.parameters()]
    return [out, *torch.autograd.grad(out, leaves, torch.randn(out.shape).to(out.dtype))]


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (15, 8)], ids=str)
@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 13])
@pytest.mark.parametrize("backend", ["correlate", "plain"])
def test_every_backend_and_kernel_equals_the_oracle(backend: str, kernel: int, size: tuple[int, int]) -> None:
    mixer = make(kernel, backend).double()
    x = torch.randn(2, *size, 8, dtype=torch.float64, requires_grad=True)
    got, want = (answers(mixer, x, out) for out in (mixer(x), oracles.dwconv(mixer, x)))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("size", "dim"), [((56, 56), 96), ((7, 7), 100), ((1, 1), 16), ((20, 33), 1)], ids=str
)
def test_correlate_equals_plain_in_float32(size: tuple[int, int], dim: int) -> None:
    mixer = make(7, "correlate", dim)
    x = torch.randn(2, *size, dim, requires_grad=True)
    got = answers(mixer, x, mixer(x))
    exact, wide = copy.deepcopy(mixer).double(), x.detach().double().requires_grad_()
    exact.forced = "plain"
    for ours, theirs in zip(got, answers(exact, wide, exact(wide)), strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max() + 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_under_autocast_are_close_to_float32(dtype: torch.dtype) -> None:
    mixer = make(7, "correlate")
    x = torch.randn(3, 15, 8, 8, requires_grad=True)
    with torch.autocast("cpu", dtype):
        got = answers(mixer, x, mixer(x))
    want = answers(mixer, x, mixer(x))
    for ours, theirs, leaf in zip(got[1:], want[1:], [x, *mixer.parameters()], strict=True):
        assert ours.dtype == leaf.dtype
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (CALL, "correlate"),
        (CALL._replace(dtype=torch.bfloat16), "correlate"),
        (CALL._replace(dtype=torch.float64), "plain"),
        (CALL._replace(grad=False), "plain"),
        (CALL._replace(compiling=True), "plain"),
        (CALL._replace(device="cuda"), "plain"),
    ],
    ids=str,
)
def test_the_choice(call: Call, name: str) -> None:
    assert DepthwiseConv(16).choose(call).name == name


def test_a_forced_backend_that_cannot_run_gives_way_to_plain() -> None:
    mixer = make(7, "correlate")
    compiled = torch.compile(mixer, backend="eager", fullgraph=True)
    x = torch.randn(2, 9, 9, 8)
    torch.testing.assert_close(compiled(x), mixer(x))


def test_a_kernel_has_a_centre_and_counts() -> None:
    with pytest.raises(ValueError, match="kernel 4 has no centre"):
        DepthwiseConv(8, kernel=4)
    assert DepthwiseConv(8, kernel=13).macs(3, 5).total == 15 * 8 * (2 * 8 + 13**2)
