"""The backbone around every mixer: its sizes, any input, gradients, memory format, export."""

import collections
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

import stmbench
from stmbench import catalog
from stmbench.mixers.identity import Identity
from stmbench.nn.backbone import Backbone, resize_position_map
from stmbench.nn.weights import load_weights, save_weights

MIXERS = ["halo", "swin", "sra", "dwconv", "dcnv3", "pool", "identity"]
SCALES = ["micro", "tiny", "small", "base"]

# dwconv's networks without its kernels.
_CONTROL = [(4335624, 0.61), (31633960, 4.92), (53827240, 9.25), (95110376, 16.44)]
# arXiv:2211.05781's networks at 224 x 224: parameters and GMACs (dcnv3's without its sampling), by scale.
GOLDEN = {
    "halo": [(4389672, 0.86), (31523176, 5.30), (52831336, 9.81), (93327336, 17.03)],
    "sra": [(4454056, 0.61), (31157736, 4.71), (50887656, 7.55), (91566312, 13.13)],
    "swin": [(4381042, 0.70), (31540546, 4.88), (52867666, 9.13), (93388576, 16.13)],
    "dwconv": [(4439624, 0.65), (31912360, 5.00), (54393640, 9.39), (95865576, 16.62)],
    "pool": _CONTROL,
    "identity": _CONTROL,
    "dcnv3": [(4302692, 0.64), (29933272, 4.79), (50082280, 8.17), (97465192, 16.00)],
}


def make(mixer: str, **options: Any) -> Backbone:
    torch.manual_seed(0)
    return enliven(stmbench.create_model(mixer, "micro", **{"num_classes": 10, **options}).eval())


def enliven(model: Backbone) -> Backbone:
    """Let every block matter: a layer scale of 1e-6 would hide it."""
    for name, parameter in model.named_parameters():
        if "gamma" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def make_shallow(mixer: str) -> Backbone:
    """The same with few blocks, for what takes time per operator; level 3 has two, for swin's shift."""
    torch.manual_seed(0)
    row = catalog.mixer(mixer)
    widths = row.scales["micro"].widths

    def make_mixer(level: int, block: int) -> nn.Module:
        return catalog.resolve(row.target)(widths[level], **row.options(widths[level], level, block))

    model = Backbone(widths, (1, 1, 2, 1), make_mixer, position_map=row.position_map, num_classes=10).eval()
    return enliven(model)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("mixer", MIXERS)
def test_parameters_and_macs_are_the_published_networks(mixer: str, scale: str) -> None:
    with torch.device("meta"):
        model = stmbench.create_model(mixer, scale)
    macs = sum(part.total for part in model.macs(224, 224).values())
    if mixer == "dcnv3":
        size = catalog.scale(mixer, scale)
        sides = [56, 28, 14, 7]
        macs -= sum(d * 45 * w * n**2 for d, w, n in zip(size.depths, size.widths, sides, strict=True))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert (parameters, round(macs / 1e9, 2)) == GOLDEN[mixer][SCALES.index(scale)]


@pytest.mark.parametrize("mixer", ["halo", "sra"])
def test_a_twin_differs_from_the_network_in_its_mixers_alone(mixer: str) -> None:
    ours, twin = (stmbench.create_model(name, "micro", size_of=mixer) for name in (mixer, "identity"))
    shapes = [
        {name: p.shape for name, p in model.named_parameters() if ".mixer." not in name}
        for model in (ours, twin)
    ]
    assert shapes[0] == shapes[1]
    assert {type(block.mixer) for level in twin.levels for block in level.blocks} == {Identity}


def test_macs_are_told_by_part() -> None:
    model = make("dwconv")
    macs = model.macs(33, 47)  # levels of 9 x 12, 5 x 6, 3 x 3 and 2 x 2 positions
    parts = {name: part.total for name, part in macs.items()}
    assert parts["stem"] == 17 * 24 * 9 * 3 * 16 + 9 * 12 * 9 * 16 * 32
    assert parts["level2.downsample"] == 5 * 6 * 9 * 32 * 64
    assert parts["level3.mixers"] == 8 * 3 * 3 * 128 * (2 * 128 + 49)
    assert parts["level3.mlps"] == 8 * 3 * 3 * 2 * 128 * 512
    assert parts["head"] == 2 * 2 * 256 * 384 + 384 * 10
    levels = [f"level{i}.{part}" for i in range(1, 5) for part in ("downsample", "mixers", "mlps")]
    assert list(parts) == ["stem", *levels[1:], "head"] == list(model.parts())


def test_parts_are_modules_that_share_nothing() -> None:
    model = make("dwconv")
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    modules = [module for part in model.parts().values() for module in part]
    for name in layers:
        assert sum(name.startswith(f"{module}.") for module in modules) == 1 or name in modules, name


@pytest.mark.parametrize("size", [(224, 224), (225, 160), (33, 47), (7, 7), (1, 1)], ids=str)
@pytest.mark.parametrize("mixer", MIXERS)
def test_any_image_size(mixer: str, size: tuple[int, int]) -> None:
    model = make(mixer)
    images = torch.randn(2, 3, *size)
    features = model.forward_features(images)
    assert features.shape == (2, 256, -(-size[0] // 32), -(-size[1] // 32))
    logits = model(images)
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_gradient_reaches_every_parameter(mixer: str) -> None:
    model = make(mixer, image_size=64).train()
    for parameter in model.parameters():
        if not parameter.any():  # what stands behind a layer that starts at zero is reached one step later
            nn.init.normal_(parameter, std=0.02)
    model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("mixer", MIXERS)
def test_built_for_one_size_and_fed_another_equals_built_for_the_other(mixer: str, tmp_path: Path) -> None:
    one = make(mixer, image_size=224)
    save_weights(tmp_path / "weights.safetensors", one.state_dict(), {})
    other = make(mixer, image_size=(96, 160))
    load_weights(other, tmp_path / "weights.safetensors")
    images = torch.randn(2, 3, 96, 160)
    assert torch.equal(one(images), other(images))


def test_position_maps_are_resized_bilinearly_between_pixel_centres() -> None:
    small = torch.tensor([[0.0, 4.0], [8.0, 12.0]])[None, None]
    along = torch.tensor([0.0, 1.0, 3.0, 4.0])
    assert torch.equal(resize_position_map(small, 4, 4)[0, 0], 2 * along[:, None] + along)


class CountedOperators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("channels", [1, 3])
def test_convolutions_see_channels_last_without_copies(channels: int) -> None:
    model = make("dwconv", in_channels=channels)
    images = torch.randn(2, channels, 64, 64).to(memory_format=torch.channels_last)
    with CountedOperators() as operators:
        features = model.forward_features(images)
        model.forward_head(features)
    copies = ("clone", "copy_", "_to_copy", "contiguous")
    assert {name: operators.counts[name] for name in copies} == dict.fromkeys(copies, 0)
    assert operators.counts["convolution"] == 17 + 5 + 1
    assert features.is_contiguous(memory_format=torch.channels_last)


def test_initialisation() -> None:
    torch.manual_seed(0)
    model: Any = stmbench.create_model("dcnv3", "micro")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.weight.abs().max() < 0.2, name
            if name.endswith((".offset", ".modulation")):
                assert not module.weight.any(), name
            elif module.weight.numel() > 1000:
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert module.bias is None or not module.bias.any(), name
    assert (model.levels[2].blocks[1].gamma1 == 1e-6).all()
    epsilons = {block.norm2.eps for level in model.levels for block in level.blocks}
    assert (epsilons, model.levels[0].norm.eps) == ({1e-5}, 1e-6)


def test_drop_path_grows_linearly_over_all_blocks() -> None:
    def rates(drop_path: float | None) -> list[float]:
        with torch.device("meta"):
            model = stmbench.create_model("dwconv", "tiny", drop_path=drop_path)
        return [float(block.drop_path.drop_prob or 0) for level in model.levels for block in level.blocks]

    assert rates(None) == pytest.approx([0.1 * i / 14 for i in range(15)])
    assert rates(0.28) == pytest.approx([0.02 * i for i in range(15)])
    assert not any(rates(0.0))


@pytest.mark.parametrize("mixer", MIXERS)
def test_gradient_checkpointing_changes_nothing(mixer: str) -> None:
    model = make(mixer, drop_path=0.5).train()
    images = torch.randn(4, 3, 40, 40)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(0)
        model(images).sum().backward()
        gradients.append(model.stem.first.conv.weight.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mixer", MIXERS)
def test_autocast(mixer: str, dtype: torch.dtype) -> None:
    model = make(mixer)
    images = torch.randn(2, 3, 40, 40)
    want = model(images)
    with torch.autocast("cpu", dtype):
        logits = model(images)
    assert (logits - want).abs().max() < 0.1 * want.std()


@pytest.mark.parametrize("mixer", MIXERS)
def test_traces_as_one_graph(mixer: str) -> None:
    model = make_shallow(mixer)
    images = torch.randn(2, 3, 64, 136)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mixer", MIXERS)
def test_another_batch_size_compiles_nothing_anew(mixer: str, training: bool) -> None:
    model = make_shallow(mixer).train(training)
    for level in model.levels:
        for block in level.blocks:
            block.drop_path.drop_prob = 0.2
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.set_grad_enabled(training):
        for batch in (2, 3, 5):
            images = torch.randn(batch, 3, 40, 72)
            torch._dynamo.mark_dynamic(images, 0)
            compiled(images)
    assert counter.frame_count == 1


@pytest.mark.parametrize("mixer", MIXERS)
def test_torch_export_with_any_batch_size(mixer: str) -> None:
    model = make_shallow(mixer)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (torch.randn(2, 3, 64, 136),), dynamic_shapes=({0: batch},))
    images = torch.randn(5, 3, 64, 136)
    torch.testing.assert_close(program.module()(images), model(images))


@pytest.mark.parametrize(
    "mixer",
    [pytest.param(name, marks=[] if name in ("halo", "dcnv3") else pytest.mark.slow) for name in MIXERS],
)
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch 2.11 warns of its own code
@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 exports no BatchNorm with onnxscript 0.7")
def test_onnx_answers_the_same(mixer: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = make_shallow(mixer)
    images = torch.randn(2, 3, 64, 136)
    program = torch.onnx.export(model, (images,), dynamo=True, verbose=False)
    assert program is not None
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(images).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MIXERS)
def test_compiles_for_training(mixer: str) -> None:
    model = make_shallow(mixer).train()
    images = torch.randn(2, 3, 64, 136)
    gradients = []
    for network in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        network(images).square().sum().backward()
        gradients.append(model.stem.first.conv.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_intermediate_features() -> None:
    model = make("swin")
    images = torch.randn(2, 3, 64, 96)
    last, (second, fourth) = model.forward_intermediates(images, indices=[1, 3])
    assert second.shape == (2, 64, 8, 12)
    assert torch.equal(fourth, last)
    assert torch.equal(last, model.forward_features(images))
    first = model.forward_intermediates(
        images, indices=[0], stop_early=True, output_fmt="NHWC", intermediates_only=True
    )
    assert isinstance(first, list)
    assert [tuple(each.shape) for each in first] == [(2, 16, 24, 32)]
    with pytest.raises(ValueError, match="NCHW or NHWC"):
        model.forward_intermediates(images, output_fmt="NLC")


def test_what_cannot_be_built(tmp_path: Path) -> None:
    impossible: list[dict[str, Any]] = [{"image_size": 0}, {"in_channels": 0}, {"num_classes": -1}]
    for options in impossible:
        with pytest.raises(ValueError, match="at least"):
            stmbench.create_model("halo", "micro", **options)
    with pytest.raises(ValueError, match="Did you mean 'halo'"):
        stmbench.create_model("hallo")
    with pytest.raises(ValueError, match="scale of halo 'mikro'"):
        stmbench.create_model("halo", "mikro")
    with pytest.raises(ValueError, match="No weights file"):
        load_weights(make("halo"), tmp_path / "nowhere.pth")
