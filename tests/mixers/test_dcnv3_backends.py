"""The backends of deformable convolution: equal to the oracle or to each other, chosen where they are best.

The Triton kernels run in Triton's interpreter, in a process of their own: importing Triton chooses it.
"""

import copy
import os
import subprocess
import sys
from pathlib import Path

import oracles
import pytest
import torch
from torch import Tensor, nn

from stmbench.mixers import dcnv3
from stmbench.mixers.backends import Call
from stmbench.mixers.dcnv3 import DeformableConvV3

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter, by test_triton")
CPU = Call("cpu", torch.float32, (8, 56, 56, 64), grad=True, compiling=False, exporting=False)
CUDA = CPU._replace(device="cuda", dtype=torch.bfloat16)


def make(backend: str, dim: int = 32, scale: float = 0.5) -> DeformableConvV3:
    torch.manual_seed(0)
    mixer = DeformableConvV3(dim)
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.5)
    mixer.offset.weight.data *= scale / 0.5
    mixer.forced = backend
    return mixer


def answers(mixer: nn.Module, x: Tensor, out: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    leaves = [x, *mixer.parameters()]
    return [out, *torch.autograd.grad(out, leaves, torch.randn(out.shape).to(out.dtype))]


def exact(mixer: DeformableConvV3, x: Tensor) -> list[Tensor]:
    """What the plain backend answers in float64."""
    mixer, x = copy.deepcopy(mixer).double(), x.detach().double().requires_grad_()
    mixer.forced = "plain"
    return answers(mixer, x, mixer(x))


def assert_close(got: list[Tensor], want: list[Tensor], tolerance: float) -> None:
    for ours, theirs in zip(got, want, strict=True):
        assert (ours - theirs).norm() <= tolerance * (theirs.norm() + 1)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (9, 7)], ids=str)
@pytest.mark.parametrize("backend", ["planar", "plain"])
def test_every_backend_equals_the_oracle(backend: str, size: tuple[int, int]) -> None:
    mixer = make(backend).double()
    x = torch.randn(2, *size, 32, dtype=torch.float64, requires_grad=True)
    got, want = (answers(mixer, x, out) for out in (mixer(x), oracles.dcnv3(mixer, x)))
    assert_close(got, want, 1e-10)


@pytest.mark.parametrize("piece", [1, 3 * 9 * 48 * 77 * 4, 1 << 30])
def test_planar_does_not_depend_on_how_many_images_it_takes_at_a_time(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dcnv3, "PIECE", piece)
    mixer = make("planar", 48, scale=2.0)  # many points are outside
    x = torch.randn(5, 11, 7, 48, requires_grad=True)
    assert_close(answers(mixer, x, mixer(x)), exact(mixer, x), 1e-4)


def test_planar_keeps_no_samples() -> None:
    mixer, x = make("planar"), torch.randn(2, 16, 16, 32)
    kept: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        mixer(x)
    assert sum(kept.values()) < 9 * x.nbytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_planar_is_as_close_as_plain_under_autocast(dtype: torch.dtype) -> None:
    mixer = make("planar", scale=0.1)
    x = torch.randn(2, 9, 11, 32, requires_grad=True)
    errors = []
    want = [each.detach() for each in exact(mixer, x)]
    for name in ("planar", "plain"):
        mixer.forced = name
        with torch.autocast("cpu", dtype):
            got = answers(mixer, x, mixer(x))
        errors.append(
            [
                float((ours.detach() - theirs).norm() / (theirs.norm() + 1))
                for ours, theirs in zip(got, want, strict=True)
            ]
        )
        assert got[0].dtype == dtype
    assert all(ours <= 1.5 * theirs + 1e-3 for ours, theirs in zip(*errors, strict=True))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (CPU, "planar"),
        (CPU._replace(grad=False), "planar"),
        (CPU._replace(dtype=torch.bfloat16), "planar"),
        (CPU._replace(compiling=True), "plain"),
        (CUDA, "triton"),
        (CUDA._replace(dtype=torch.float32, compiling=True), "triton"),
        (CUDA._replace(dtype=torch.float64), "plain"),
        (CUDA._replace(compiling=True, exporting=True), "plain"),
        (CPU._replace(device="mps"), "plain"),
    ],
    ids=str,
)
def test_the_choice_where_triton_runs(call: Call, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dcnv3, "_tried", lambda device: "")
    assert DeformableConvV3(32).choose(call).name == name


def test_where_triton_fails_the_plain_backend_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stmbench.mixers.dcnv3_triton", None)  # an import of it fails
    reason = dcnv3._tried.__wrapped__("cuda")
    assert reason.startswith("Triton does not run here: ModuleNotFoundError")
    monkeypatch.setattr(dcnv3, "_tried", lambda device: reason)
    assert DeformableConvV3(32).choose(CUDA).name == "plain"


def test_compiles_whole_and_once_for_all_batches() -> None:
    mixer, graphs = make(""), []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(mixer, backend=count, fullgraph=True, dynamic=True)
    for batch in (2, 3):
        x = torch.randn(batch, 5, 6, 32)
        torch.testing.assert_close(compiled(x), mixer(x), rtol=1e-4, atol=1e-4)
    assert len(graphs) == 1


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_the_kernels_compile_for_an_h100_without_one(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = pytest.importorskip("triton", minversion="3.3")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from stmbench.mixers import dcnv3_triton as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    few, many = ["value", "moves", "out"], ["grad", "value", "moves", "to_value", "to_moves"]
    for kernel, tensors in ((kernels._forward, few), (kernels._backward, many)):
        types = {name: f"*{'fp32' if name == 'to_value' else dtype}" for name in tensors}
        signature = {**types, **dict.fromkeys(["count", "H", "W", "G"], "i32"), "ROWS": "constexpr"}
        aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(tensors))}
        source = ASTSource(kernel, signature, {(len(signature) - 1,): kernels.ROWS}, aligned)
        compiled = triton.compile(
            source, target=GPUTarget("cuda", 90, 32), options={"num_warps": kernels.WARPS}
        )
        assert "ld.global.v4" in compiled.asm["ptx"]  # a thread's 16 bytes in one access


# In Triton's interpreter


def test_triton() -> None:
    if INTERPRETED:
        pytest.skip("it is what runs")
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "interpreted", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ran = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "skipped" not in ran.stdout


@interpreted
@pytest.mark.parametrize(
    ("batch", "size", "dim", "scale"),
    [(1, (1, 1), 16, 0.5), (3, (3, 5), 16, 0.5), (1, (9, 7), 48, 0.5), (2, (3, 4), 48, 50.0)],
    ids=str,
)
def test_interpreted_equals_plain(batch: int, size: tuple[int, int], dim: int, scale: float) -> None:
    mixer = make("triton", dim, scale)
    x = torch.randn(batch, *size, dim, requires_grad=True)
    assert mixer.backend(x).name == "triton"
    assert_close(answers(mixer, x, mixer(x)), exact(mixer, x), 1e-5 if scale < 1 else 1e-4)


@interpreted
def test_interpreted_equals_the_oracle() -> None:
    mixer = make("triton", 16)
    x = torch.randn(1, 3, 5, 16, requires_grad=True)
    want = answers(mixer, x, oracles.dcnv3(mixer, x))
    assert_close(answers(mixer, x, mixer(x)), want, 1e-5)


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_interpreted_half_precision_is_float32_inside(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    value, moves = torch.randn(2, 5, 4, 32).to(dtype), (2 * torch.randn(2, 5, 4, 54)).to(dtype)
    grad = torch.randn(2, 5, 4, 32).to(dtype)
    results = []
    for kind in (dtype, torch.float32):
        leaves = [each.detach().to(kind).requires_grad_() for each in (value, moves)]
        if not results:
            assert dcnv3._tried("cpu") == ""
        out = torch.ops.stmbench.dcnv3(*leaves)
        assert out.dtype == kind
        results.append([out, *torch.autograd.grad(out, leaves, grad.to(kind))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs.to(dtype))


@interpreted
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch's own test
def test_interpreted_operators_keep_the_rules_of_torch() -> None:
    assert dcnv3._tried("cpu") == ""
    value = torch.randn(2, 3, 4, 16, requires_grad=True)
    moves = torch.randn(2, 3, 4, 27, requires_grad=True)
    torch.library.opcheck(torch.ops.stmbench.dcnv3.default, (value, moves))


@interpreted
def test_interpreted_compiles_whole_and_once_for_all_batches() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    mixer, counter = make("triton"), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(mixer, backend=counter, fullgraph=True, dynamic=True)
    for batch in (2, 3):
        x = torch.randn(batch, 3, 4, 32, requires_grad=True)
        assert_close(answers(mixer, x, compiled(x)), exact(mixer, x), 1e-5)
    # Torch 2.15 compiles an empty graph beside it while it looks whether Triton runs.
    assert sum(bool(graph.graph.nodes) for graph in counter.graphs) == 1
