"""What must hold on a GPU. Where there is one, these tests run on it; where there is none, on stand-ins.

A fake GPU computes nothing, but knows where each tensor lies and of which type it is, and fails where the
host would have to wait for a number. What computes something runs on the CPU then, where it holds as well.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.cuda.amp.common
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional as F

from stmbench import catalog, plan
from stmbench.mixers import dcnv3
from stmbench.mixers.backends import PLAIN, Call, force
from stmbench.nn import create_model
from stmbench.nn.block import Block

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MIXERS = list(catalog.mixers())
BACKENDS = [(mixer, backend.name) for mixer in MIXERS for backend in plan.backends_of(mixer)]
CALL = Call(DEVICE, torch.float32, (3, 24, 20, 32), grad=True, compiling=False, exporting=False)
HALVES = [torch.bfloat16, torch.float16]
SIZE = (96, 80)  # maps of 24 x 20 to 3 x 3, into which windows and blocks do not fit


def network(mixer: str, **options: Any) -> nn.Module:
    """A small network in which a mixer weighs as much as all else."""
    torch.manual_seed(0)
    model = create_model(mixer, "micro", num_classes=10, **options)
    for block in model.modules():
        if isinstance(block, Block):
            nn.init.ones_(block.gamma1)
            nn.init.ones_(block.gamma2)
            if isinstance(block.mixer, dcnv3.DeformableConvV3):  # at whole pixels it has no gradient
                nn.init.constant_(block.mixer.offset.bias, 0.3)
    return model


def images() -> Tensor:
    return torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def trained(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What comes out, and the gradients of all parameters."""
    out = model(x)
    loss = F.cross_entropy(out.flatten(1).double(), torch.arange(len(x), device=x.device))
    return [out.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


def distance(got: list[Tensor], want: list[Tensor]) -> float:
    """Of all numbers together, relative to what they should be."""
    ours, theirs = (torch.cat([each.double().cpu().flatten() for each in tensors]) for tensors in (got, want))
    return float((ours - theirs).norm() / theirs.norm())


def using(model: nn.Module, mixer: str, backend: str, call: Call) -> nn.Module:
    """The network on the device, whose mixers all compute so; skips where they cannot."""
    named = {each.name: each for each in plan.backends_of(mixer)}
    if reason := named[backend].refuses(call):
        pytest.skip(f"{backend}: {reason}")
    force(model, backend)
    return model.to(DEVICE)


# On a fake GPU


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> FakeTensorMode:
    """To be entered once the network is made, which reads numbers."""
    pytest.importorskip("stmbench.mixers.dcnv3_triton", reason="Triton registers what samples there")
    monkeypatch.setattr(dcnv3, "_tried", lambda device: "")
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    gpu = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with gpu:
            torch.empty(1, 2, 3, 4, device="cuda").contiguous(memory_format=torch.channels_last)
    except RuntimeError:
        pytest.skip("this torch asks the real GPU about the fake one")
    return gpu


def move(model: nn.Module) -> None:
    """A real network to the fake GPU."""
    for module in model.modules():
        for name, tensor in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, nn.Parameter(torch.empty_like(tensor, device="cuda")))
        for name, tensor in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty_like(tensor, device="cuda"))


def test_a_fake_gpu_sees_who_waits_and_what_lies_elsewhere(fake_gpu: FakeTensorMode) -> None:
    with fake_gpu:
        x = torch.ones(3, device="cuda")
        with pytest.raises(DataDependentOutputException):
            x.sum().item()
        with pytest.raises(RuntimeError, match="device"):
            _ = x + torch.ones(3)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_forward_pass_on_a_gpu_waits_for_nothing(
    mixer: str, training: bool, half: bool, fake_gpu: FakeTensorMode
) -> None:
    model = network(mixer, drop_path=0.3).train(training)
    with fake_gpu, torch.autocast("cuda", torch.bfloat16, enabled=half), torch.set_grad_enabled(training):
        move(model)
        logits = model(torch.empty(4, 3, *SIZE, device="cuda"))
    assert logits.device.type == "cuda"
    assert logits.dtype == (torch.bfloat16 if half else torch.float32)


# On a GPU, or else on the CPU


@pytest.fixture(autouse=True)
def _all_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """No convolution in TensorFloat-32, as cuDNN has it by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@contextlib.contextmanager
def nobody_waits() -> Iterator[None]:
    """Fails where the host waits for a GPU."""
    if DEVICE == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("mixer", "backend"), BACKENDS)
def test_every_backend_trains_as_the_plain_one_does_in_float64(mixer: str, backend: str) -> None:
    model = using(network(mixer), mixer, backend, CALL)
    exact = network(mixer, backend=PLAIN).double()
    assert distance(trained(model, images().to(DEVICE)), trained(exact, images().double())) < 1e-4


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("mixer", MIXERS)
def test_half_precision_is_close_to_float32(mixer: str, dtype: torch.dtype) -> None:
    model, x = network(mixer).to(DEVICE), images().to(DEVICE)
    with torch.autocast(DEVICE, dtype):
        got = trained(model, x)
    assert all(each.isfinite().all() for each in got)
    assert distance(got, trained(model, x)) < (0.1 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_training_step_waits_for_nothing(mixer: str) -> None:
    model, x = network(mixer, drop_path=0.3).to(DEVICE), images().to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    target = torch.arange(len(x), device=DEVICE)

    def step() -> Tensor:
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = F.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    step()  # what is made once may wait
    with nobody_waits():
        loss = step()
    assert loss.isfinite()


@pytest.mark.slow
@pytest.mark.parametrize(("mixer", "backend"), BACKENDS)
def test_compiled_blocks_train_as_eager_ones_for_any_batch(mixer: str, backend: str) -> None:
    torch.compiler.reset()
    forced: Any = using(network(mixer), mixer, backend, CALL._replace(compiling=True))
    free: Any = network(mixer).to(DEVICE)  # as not every backend runs eagerly
    # Two blocks, as windows are shifted in every other.
    blocks, eager = (nn.Sequential(*each.levels[1].blocks[:2]) for each in (forced, free))
    compiled: Any = torch.compile(blocks, fullgraph=True)
    maps = torch.randn(5, 12, 10, 64).to(DEVICE)
    for batch in (2, 3):
        assert distance(trained(compiled, maps[:batch]), trained(eager, maps[:batch])) < 1e-4
    with torch.compiler.set_stance("fail_on_recompile"):  # the batch is a symbol by now
        trained(compiled, maps)
