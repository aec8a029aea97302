"""MACs by consensus: exact where a closed form is known, loud where accounts differ, open about the rest."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

import stmbench
from stmbench import catalog
from stmbench.measure import operators
from stmbench.measure.count import Count, count, declared, traffic
from stmbench.nn.backbone import Backbone
from stmbench.record import Macs

MIXERS = list(catalog.mixers())


class Net(nn.Module):
    """A function of the image as a network, with the layers it uses."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, **dict(self.named_children()))


def counted(function: Callable[..., Any], **layers: nn.Module) -> Count:
    """Of one image (4, 6, 6)."""
    return count(Net(function, **layers), (4, 6, 6))


@pytest.mark.parametrize("size", [(28, 28), (33, 47)], ids=str)
@pytest.mark.parametrize("mixer", MIXERS)
def test_all_accounts_of_our_networks_are_the_same(mixer: str, size: tuple[int, int]) -> None:
    check_exact(stmbench.create_model(mixer, "micro", num_classes=10, image_size=100), size)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(224, 224), (225, 225)], ids=str)
@pytest.mark.parametrize(("mixer", "scale"), [(m, s) for m in MIXERS for s in catalog.mixer(m).scales])
def test_all_accounts_are_the_same_at_every_scale(mixer: str, scale: str, size: tuple[int, int]) -> None:
    check_exact(stmbench.create_model(mixer, scale, image_size=size), size)


def check_exact(model: Backbone, size: tuple[int, int]) -> None:
    found = count(model, (3, *size))
    forms = model.macs(*size)
    assert {part.name: part.declared for part in found.parts} == {n: m.computed for n, m in forms.items()}
    for part in (found.total, *found.parts):
        assert part.declared == part.fvcore == part.flop_counter, str(part)
    assert found.total.declared == sum(forms.values(), Macs(0)).computed
    assert not found.total.uncounted
    assert found.disagreement == 0
    found.check()


def test_a_broken_closed_form_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = stmbench.create_model("swin", "micro")
    mixer = type(model.levels[0].blocks[0].mixer)
    right = mixer.macs

    def wrong(self: Any, height: int, width: int) -> Macs:
        macs = right(self, height, width)
        return macs if self.dim != 128 else Macs(macs.total * 95 // 100, macs.padding)

    monkeypatch.setattr(mixer, "macs", wrong)
    found = count(model, (3, 64, 64))
    with pytest.raises(RuntimeError) as error:
        found.check()
    part = next(part for part in found.parts if part.name == "level3.mixers")
    assert f"level3.mixers: closed form {part.declared:,}, fvcore {part.fvcore:,}" in str(error.value)
    assert "level2" not in str(error.value)
    assert found.disagreement == pytest.approx(0.05, rel=1e-3)


class Hidden(torch.autograd.Function):
    """What a trace cannot look into."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x @ x


def test_counters_that_differ_name_the_operator() -> None:
    found = counted(lambda x, linear: Hidden.apply(linear(x)), linear=nn.Linear(6, 6))
    assert (found.total.fvcore, found.total.flop_counter) == (4 * 6**3, 8 * 6**3)
    with pytest.raises(
        RuntimeError, match=r"total: .*product 864 against 1,728; nobody counted Hidden \(1\)"
    ):
        found.check()


def test_operators_nobody_counts_are_listed_with_their_calls() -> None:
    operator = torch.library.custom_op(
        "stmbench_test::twice", lambda x: 2 * x, mutates_args=(), schema="(Tensor x) -> Tensor"
    )
    found = counted(lambda x: torch.cdist(operator(operator(x)), x))
    assert found.total.uncounted == {"stmbench_test.twice": 2, "_cdist_forward": 1}
    found.check()


def test_a_vision_transformer_costs_what_its_formula_says() -> None:
    tokens, width = 197, 768
    blocks = 12 * (12 * tokens * width**2 + 2 * tokens**2 * width)
    found = count(timm.create_model("vit_base_patch16_224"), (3, 224, 224))
    # 17.56 G; published as 17.58, which is fvcore's and has 5 for each normalised element
    assert found.macs == 196 * width * width + blocks + 1000 * width == found.total.flop_counter


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gmacs"), [("swin_tiny_patch4_window7_224", 4.49), ("resnet50", 4.09), ("cait_xxs24_224", 2.52)]
)
def test_known_networks(name: str, gmacs: float) -> None:
    found = count(timm.create_model(name), (3, 224, 224))
    assert round(found.macs / 1e9, 2) == gmacs
    assert found.disagreement == 0
    assert not found.total.uncounted


def test_attention_counts_the_same_fused_or_not() -> None:
    model = timm.create_model("test_vit")
    fused = count(model, (3, 160, 160))
    for block in model.blocks:  # pyright: ignore[reportGeneralTypeIssues]
        assert block.attn.fused_attn
        block.attn.fused_attn = False
    unfused = count(model, (3, 160, 160))
    assert fused.total == unfused.total
    assert fused.disagreement == unfused.disagreement == 0


@pytest.mark.parametrize("weights", [True, False])
def test_attention_of_torch_is_counted_in_eval(weights: bool) -> None:
    attention = nn.MultiheadAttention(6, 2, batch_first=True)
    found = counted(lambda x, a: a(x[0], x[0], x[0], need_weights=weights), a=attention.eval())
    assert found.macs == 4 * (4 * 6 * 6**2 + 2 * 6**2 * 6) == found.total.flop_counter
    layer = nn.TransformerEncoderLayer(6, 2, 10, batch_first=True).eval()
    found = counted(lambda x, a: a(x[0]), a=layer)
    assert found.macs == 4 * (4 * 6 * 6**2 + 2 * 6**2 * 6 + 2 * 6 * 6 * 10) == found.total.flop_counter


GRID = torch.rand(1, 5, 5, 2) * 2 - 1
MASK = torch.zeros(6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), float("-inf"))
AXES: Any = ([1, 3], [1, 3])
N = 4 * 6 * 6  # elements of the image


def points(channels: int) -> Tensor:
    return torch.zeros(1, channels, 6, 6)


OPERATORS: dict[str, tuple[str, Callable[[Tensor], Any], float]] = {
    "depthwise": ("convolution", lambda x: F.conv2d(x, torch.ones(4, 1, 3, 3), padding=1, groups=4), 9 * N),
    "same": ("convolution", lambda x: F.conv2d(x, torch.ones(2, 4, 3, 3), padding="same"), 9 * 2 * N),
    "strided": ("convolution", lambda x: F.conv2d(x, torch.ones(2, 4, 2, 2), stride=2), 2 * N),
    "1d": ("convolution", lambda x: F.conv1d(x[0], torch.ones(2, 6, 3), padding=1), 4 * 6 * 2 * 6 * 3),
    "transposed": ("convolution", lambda x: F.conv_transpose2d(x, torch.ones(4, 2, 2, 2), stride=2), 8 * N),
    "linear": ("linear", lambda x: F.linear(x, torch.ones(5, 6)), 5 * N),
    "broadcast": ("product", lambda x: torch.ones(5, 6) @ x, 5 * N),
    "vector": ("product", lambda x: x @ x[0, 0, 0], N),
    "dot": ("product", lambda x: x[0, 0, 0] @ x[0, 0, 1], 6),
    "addmm": ("product", lambda x: torch.addmm(x[0, 0], x[0, 0], x[0, 1]), 6**3),
    "addmv": ("product", lambda x: torch.addmv(x[0, 0, 0], x[0, 0], x[0, 0, 0]), 6**2),
    "addbmm": ("product", lambda x: torch.addbmm(x[0, 0], x[0], x[0]), 4 * 6**3),
    "baddbmm": ("product", lambda x: torch.baddbmm(x[0], x[0], x[0]), 4 * 6**3),
    "in place": ("product", lambda x: x[0].clone().baddbmm_(x[0], x[0]), 4 * 6**3),
    "tensordot": ("product", lambda x: torch.tensordot(x, x, dims=AXES), 6 * 6 * 4 * 6),
    "einsum": ("product", lambda x: torch.einsum("bhqd,bhkd->bhqk", x, x), 4 * 6**3),
    "attention": (
        "product",
        lambda x: F.scaled_dot_product_attention(x, x[:, :, :5], x[:, :, :5]),
        2 * 5 * N,
    ),
    "masked": ("product", lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=MASK), 2 * 6 * N),
    "causal": ("product", lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), 2 * 6 * N),
    "bilinear": ("sampling", lambda x: F.grid_sample(x, GRID, align_corners=False), 4 * 4 * 25),
    "bicubic": ("sampling", lambda x: F.grid_sample(x, GRID, "bicubic", align_corners=False), 20 * 4 * 25),
    "nearest": ("sampling", lambda x: F.grid_sample(x, GRID, "nearest", align_corners=False), 0),
    "fft": ("fft", lambda x: torch.fft.fft(torch.complex(x, x)), 2.5 * N * 2.585),
    "fft of reals": ("fft", lambda x: torch.fft.fft(x), 1.25 * N * 2.585),
    "rfft": ("fft", lambda x: torch.fft.rfft(x, dim=2), 1.25 * N * 2.585),
    "rfft of a part": ("fft", lambda x: torch.fft.rfft(x, 4), 1.25 * 4 * 6 * 4 * 2),
    "rfft2": ("fft", lambda x: torch.fft.rfft2(x), 1.25 * N * 5.17),
    "rfft2 and back": ("fft", lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=(6, 6)), 2.5 * N * 5.17),
    "fftn": ("fft", lambda x: torch.fft.ifftn(torch.fft.fftn(x, dim=(2, 3)), dim=(2, 3)), 5 * N * 5.17),
    "deformable": (
        "deformable",
        lambda x: deform_conv2d(x, points(18), torch.ones(5, 4, 3, 3), padding=(1, 1)),
        36 * (5 * 36 + 4 * 36),
    ),
    "modulated": (
        "deformable",
        lambda x: deform_conv2d(x, points(36), torch.ones(8, 2, 3, 3), padding=(1, 1), mask=points(18)),
        36 * (8 * 18 + 5 * 36),
    ),
    "weighted sum": ("weighted_sum", lambda x: (x * x[:, :1]).sum(1), N),
    "weighted mean": ("weighted_sum", lambda x: (x * x.sigmoid()).mean((2, 3)), N),
    "cosine": ("weighted_sum", lambda x: F.cosine_similarity(x, x.exp()), N),
    "vecdot": ("weighted_sum", lambda x: torch.linalg.vecdot(x, x), N),
    "gate": ("", lambda x: (x * x.sigmoid()).relu().sum(1), 0),
    "in-place gate": ("", lambda x: (x * x.sigmoid()).relu_().sum(1), 0),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str) -> None:
    family, function, macs = OPERATORS[name]
    found = counted(function)
    assert {key: value for key, value in found.total.traced.items() if value} == (
        {family: pytest.approx(macs, rel=1e-3)} if macs else {}
    )
    assert found.total.fvcore == found.total.flop_counter
    assert not found.total.uncounted


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk", [(3, 4), (4, 5)]),
        ("...ij,...jk->...ik", [(2, 1, 3, 4), (6, 4, 5)]),
        ("bij,bjk,bkl->bil", [(2, 3, 4), (2, 4, 5), (2, 5, 6)]),
        ("ij,ij->ij", [(3, 4), (3, 4)]),
        ("ij,kj->ik", [(3, 1), (5, 4)]),
        ("ijm,jk->ik", [(3, 4, 2), (4, 5)]),
        ("ij,ij,ij->", [(3, 4), (3, 4), (3, 4)]),
        ("ii,ij->j", [(3, 3), (3, 4)]),
    ],
)
def test_einsum_as_torch_does_it(equation: str, shapes: list[tuple[int, ...]]) -> None:
    found = counted(lambda _: torch.einsum(equation, *(torch.ones(shape) for shape in shapes)))
    assert operators.einsum(equation, shapes) == found.total.flop_counter == found.total.fvcore


def test_einsum_along_a_path() -> None:
    shapes = [(2, 3), (3, 5), (5, 7)]
    assert operators.einsum("ij,jk,kl->il", shapes) == 2 * 3 * 5 + 2 * 5 * 7
    assert operators.einsum("ij,jk,kl->il", shapes, (1, 2, 0, 1)) == 3 * 5 * 7 + 2 * 3 * 7


def test_parts_of_other_networks_are_their_children() -> None:
    found = counted(
        lambda x, layers, head, unused: head(layers[1](layers[0](x)).mean((2, 3))),
        layers=nn.ModuleList([nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1)]),  # a list is never called itself
        head=nn.Linear(8, 10),
        unused=nn.Linear(2, 2),
    )
    assert {part.name: (part.fvcore, part.flop_counter) for part in found.parts} == {
        "layers": (36 * 96, 36 * 96),
        "head": (80, 80),
    }


class Caller(nn.Module):
    def forward(self, x: Tensor, layer: nn.Module) -> Tensor:
        return layer(layer(x))


def test_work_belongs_to_the_part_that_has_it_done() -> None:
    found = counted(
        lambda x, layers, own: own(x, layers[0]), layers=nn.ModuleList([nn.Linear(6, 6)]), own=Caller()
    )
    assert {part.name: part.fvcore for part in found.parts} == {"layers": 12 * N, "own": 12 * N}
    assert found.disagreement == 0


def test_layers_that_are_shared_count_wherever_they_are_used() -> None:
    layer = nn.Linear(6, 6)
    found = counted(lambda x, a, b: b(a(x)), a=layer, b=nn.Sequential(layer))
    assert (found.macs, found.total.flop_counter, found.parts) == (12 * N, 12 * N, ())


def test_parameters_may_be_handed_to_modules() -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.ones(1, 6))
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.layer(self.token.expand(2, -1)).sum()

    assert count(Token(), (4, 6, 6)).macs == 2 * 36


@pytest.mark.parametrize(
    ("function", "operations"),
    [
        (lambda x: x.reshape(4, 36).t(), 0),
        (lambda x: torch.cat([x, x]).roll(1), 0),
        (lambda x: x.relu() + 1, 2 * N),
        (lambda x: F.hardswish(x[:, :1]), 36),
        (lambda x: x.softmax(1), N),
        (lambda x: F.layer_norm(x, (6,)), N),
        (lambda x: F.avg_pool2d(x, 3), 9 * 4 * 4),
        (lambda x: F.max_pool2d(x, 2, 2), 4 * 4 * 9),
        (lambda x: F.adaptive_avg_pool2d(x, 1), N),
        (lambda x: F.interpolate(x, (3, 3), mode="bilinear"), 4 * 4 * 9),
        (lambda x: (x * x).sum(), 0),
        (lambda x: (x * x) + 1, 2 * N),
    ],
)
def test_element_wise_work(function: Callable[[Tensor], Tensor], operations: int) -> None:
    assert counted(function).elementwise == operations


def test_the_model_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout()).double().train()
    model[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    assert count(model, (4, 6, 6)).macs == 16 * 36
    assert traffic(model, (4, 6, 6)).weights > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, True, True, True]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.equal(random, torch.random.get_rng_state())


def test_a_compiled_network_is_counted_as_the_one_it_was_compiled_from() -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("compiled")

    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Linear(6, 6))
    plain = count(model, (4, 6, 6))
    assert count(torch.compile(model, backend=never), (4, 6, 6)) == plain  # pyright: ignore[reportArgumentType]
    model[1].compile(backend=never)
    assert count(model, (4, 6, 6)) == plain


def test_traffic_of_known_operators() -> None:
    convolution = traffic(nn.Conv2d(4, 2, 1), (4, 6, 6))
    assert (convolution.weights, convolution.activations) == (4 * (8 + 2), 4 * (N + 72))
    views = traffic(Net(lambda x: x.expand(5, 4, 6, 6).transpose(0, 1)[..., None] + 1), (4, 6, 6))
    assert (views.weights, views.activations) == (0, 4 * (N + 5 * N))  # an expanded tensor is read once
    windows = traffic(Net(lambda x: x.unfold(2, 3, 1).contiguous()), (4, 6, 6))
    assert windows.activations == 4 * (N + 4 * 4 * 6 * 3)
    memory = traffic(Net(lambda x: (torch.empty(100), x)[1]), (4, 6, 6))
    assert memory.activations == 0


def test_traffic_under_autocast_casts_the_weights_in_every_pass() -> None:
    half = traffic(nn.Linear(10, 20), (1, 3, 10), torch.bfloat16)
    weights, inputs, outputs = 20 * 10 + 20, 3 * 10, 3 * 20
    assert half.weights == weights * (4 + 2 + 2)  # read in float32, written and read again in bfloat16
    assert half.activations == inputs * (4 + 2 + 2) + outputs * 2


def test_only_our_backbone_declares_a_closed_form() -> None:
    assert declared(timm.create_model("test_resnet"), 64, 64) == {}
    assert "stem" in declared(stmbench.create_model("halo", "micro"), 64, 64)
