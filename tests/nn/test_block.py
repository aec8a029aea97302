"""The block on its several ways: in slices, with dropped images left out, scaled; all the same numbers."""

from typing import Any

import pytest
import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stmbench.nn import sliced_mlp
from stmbench.nn.block import Block

DIM = 6


class Whirl(nn.Module):
    """A mixer with a parameter, that treats each image by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flip(1, 2)).tanh()


def make(drop_path: float = 0.0) -> Block:
    torch.manual_seed(0)
    block = Block(DIM, Whirl(), mlp_ratio=4, norm_eps=1e-5, drop_path=drop_path).double()
    for parameter in block.parameters():
        nn.init.uniform_(parameter, -0.8, 0.8)
    return block


def obvious(block: Block, x: Tensor) -> Tensor:
    """The block as its docstring has it, by timm's DropPath."""
    x = x + block.drop_path(block.gamma1 * block.mixer(block.norm1(x)))
    return x + block.drop_path(block.gamma2 * block.mlp(block.norm2(x)))


def gradients(run: Any, block: Block, x: Tensor) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    out = run(x)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return out, *torch.autograd.grad((out * weight).sum(), (x, *block.parameters()))


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of 16 positions or fewer, whatever the size."""
    for name, value in {"SLICE": 16, "LARGE": 0, "HUGE": 0}.items():
        monkeypatch.setattr(sliced_mlp, name, value)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 4, 2), (3, 5, 7)], ids=str)
@pytest.mark.parametrize("narrow", [0, 100])  # the GELU alone is computed again, or everything in slices
@pytest.mark.usefixtures("small_slices")
def test_what_is_computed_again_changes_no_gradient(
    shape: tuple[int, int, int], narrow: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sliced_mlp, "NARROW", narrow)
    block = make()
    x = torch.randn(*shape, DIM, dtype=torch.float64)
    assert sliced_mlp.applies(x, block.norm2, block.mlp)
    got, want = (gradients(run, block, x) for run in (block, lambda x: obvious(block, x)))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_inference_leaves_its_input_alone() -> None:
    block = make()
    x = torch.randn(2, 7, 5, DIM, dtype=torch.float64)
    kept = x.clone()
    with torch.inference_mode():
        torch.testing.assert_close(block(x), obvious(block, x), rtol=1e-10, atol=1e-12)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("rate", [0.4, 0.97, 1.0])
def test_dropped_images_are_left_out_as_timm_drops_them(rate: float) -> None:
    block = make(rate).train()
    x = torch.randn(8, 3, 4, DIM, dtype=torch.float64)
    got, want = (gradients(run, block, x) for run in (block, lambda x: obvious(block, x)))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    assert isinstance(block.drop_path, DropPath)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_a_compiled_block_drops_without_leaving_the_graph(rate: float) -> None:
    torch._dynamo.reset()
    block = make(rate).train()
    x = torch.randn(8, 3, 4, DIM, dtype=torch.float64)
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    torch.testing.assert_close(gradients(compiled, block, x), gradients(block, block, x))


@pytest.mark.usefixtures("small_slices")
def test_whoever_watches_sees_the_modules() -> None:
    block = make().float()
    x = torch.randn(1, 2, 4, DIM)
    calls: list[nn.Module] = []
    handle = block.mlp.fc1.register_forward_hook(lambda module, *_: calls.append(module))
    block(x)
    handle.remove()
    assert calls == [block.mlp.fc1]
    block(x)
    assert calls == [block.mlp.fc1]
    with FlopCounterMode(display=False) as counter:
        block(x)
    assert counter.get_flop_counts()["Block.mlp"][torch.ops.aten.addmm] == 2 * block.mlp_macs(2, 4).total
    assert torch.func.vmap(block)(x[None]).shape == (1, 1, 2, 4, DIM)


@pytest.mark.usefixtures("small_slices")
def test_a_layer_that_took_the_place_of_another_is_called() -> None:
    block = make()
    x = torch.randn(1, 2, 4, DIM, dtype=torch.float64)
    with torch.no_grad():
        before = block(x)
        block.mlp.fc2 = nn.Sequential(block.mlp.fc2, nn.ReLU())  # pyright: ignore[reportAttributeAccessIssue]
        torch.testing.assert_close(block(x), obvious(block, x))
        assert not torch.allclose(block(x), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_residuals_in_float32(dtype: torch.dtype) -> None:
    block = make(0.4).float().train()
    x = torch.randn(4, 3, 4, DIM)
    torch.manual_seed(2)
    want = block(x)
    torch.manual_seed(2)
    with torch.autocast("cpu", dtype):
        got = block(x)
    assert got.dtype == torch.float32
    assert (got - want).abs().max() < 0.05
