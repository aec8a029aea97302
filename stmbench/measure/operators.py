"""What one call of an operator costs in multiply-accumulates (MACs), and what kind of work the rest do.

Two tables for two counters that share no parsing: `TRACED` reads the nodes of a TorchScript trace (fvcore
walks it), where a layer is still the operator that was called; `dispatched` gives FLOPs to torch's
FlopCounterMode for operators it has no formula of, at the level where kernels run. What both must agree on by
definition stands in `fft`, `sampling` and `deformable`:

    fft          2.5 n log2 n for n complex points, half of it where one side is real (radix 2, as usual)
    sampling     per output element of grid_sample: bilinear 4, trilinear 8, bicubic 20, nearest 0
    deformable   its matrix product, and 4 per sampled value, or 5 where the samples are weighted

A product that is summed right away, ``(a * b).sum()``, is a multiply-accumulate too: `weighted_sum`. Pooling
and resizing, whose weights are fixed, are element-wise work and no MACs.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision  # noqa: F401 - registers torch.ops.torchvision
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Shape = Sequence[int]
Handle = Callable[[list[Any], list[Any]], Counter[str]]
aten = torch.ops.aten


def fft(shape: Shape, dims: Sequence[int], *, real: bool) -> int:
    """MACs of transforms of the whole (not halved) `shape` along `dims`."""
    points = math.prod(shape[dim] for dim in dims)
    return round(math.prod(shape) * 2.5 * math.log2(points) / (2 if real else 1))


def sampling(mode: str, dims: int) -> int:
    """MACs per output element of sampling at any position among `dims` axes."""
    return {"nearest": 0, "linear": 2**dims, "cubic": 20}[mode]


def deformable(image: Shape, weight: Shape, out: Shape, *, modulated: bool) -> int:
    """MACs of a deformable convolution: the product and the samples it is taken of."""
    samples = math.prod(out) // out[1] * image[1] * math.prod(weight[2:])
    return math.prod(out) * math.prod(weight[1:]) + samples * (5 if modulated else 4)


def einsum(equation: str, shapes: Sequence[Shape], path: Sequence[int] | None = None) -> int:
    """MACs of an einsum as torch does it: pair by pair along `path`, by default from left to right.

    A label that only one of a pair has is summed beforehand, and a pair without a label to sum over is an
    element-wise product: neither is counted.
    """
    operands, output, sizes = _labels(equation.replace(" ", ""), shapes)
    pairs = list(zip(path[::2], path[1::2], strict=True)) if path else [(0, 1)] * (len(shapes) - 1)
    macs = 0
    for index, (first, second) in enumerate(pairs):
        a, b = operands[first], operands[second]
        rest = [each for place, each in enumerate(operands) if place not in (first, second)]
        later = output.union(*rest)
        summed, kept = (a & b) - later, (a | b) & later
        if summed:
            macs += math.prod(sizes[label] for label in summed | kept)
        operands = [*rest, kept] if path else [kept, *rest]
        assert len(operands) == len(pairs) - index
    return macs


def _labels(equation: str, shapes: Sequence[Shape]) -> tuple[list[set[str]], set[str], dict[str, int]]:
    """Each operand's labels longer than 1, the output's labels, and the length of each."""
    left, arrow, right = equation.partition("->")
    terms, sizes = [], {}
    for term, shape in zip(left.split(","), shapes, strict=True):
        hidden = len(shape) - len(
            term.replace("...", "")
        )  # the axes behind an ellipsis, aligned at their end
        labels = [*term] if "..." not in term else []
        if "..." in term:
            before, _, after = term.partition("...")
            labels = [*before, *(f"-{place}" for place in range(hidden, 0, -1)), *after]
        terms.append({label for label, size in zip(labels, shape, strict=True) if size > 1})
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    if not arrow:
        right = "..." + "".join(label for label in sizes if left.count(label) == 1)
    ellipsis = {label for label in sizes if label.startswith("-")} if "..." in right else set()
    return terms, {*right.replace(".", "")} | ellipsis, sizes


# --- Counter 1: nodes of a trace. A handle takes the node's inputs and outputs (torch._C.Value).


def _shape(value: Any) -> list[int]:
    return value.type().sizes()


def _handle(family: str, macs: Callable[[list[Any], list[Any]], int]) -> Handle:
    return lambda inputs, outputs: Counter({family: macs(inputs, outputs)})


def _product(a: int = 0) -> Handle:
    """Of a matrix product: every output element sums over the last axis of input `a`."""
    return _handle("product", lambda i, o: math.prod(_shape(o[0])) * _shape(i[a])[-1])


def _traced_addbmm(inputs: list[Any], _: list[Any]) -> int:
    return math.prod(_shape(inputs[1])) * _shape(inputs[2])[-1]


def _traced_tensordot(inputs: list[Any], outputs: list[Any]) -> int:
    sizes = [math.prod(_shape(value)) for value in (inputs[0], inputs[1], outputs[0])]
    return math.isqrt(sizes[0] * sizes[1] * sizes[2])


def _traced_convolution(inputs: list[Any], outputs: list[Any], *, transposed: bool | None = None) -> int:
    if transposed is None:
        transposed = bool(inputs[6].toIValue())
    positions = inputs[0] if transposed else outputs[0]
    return math.prod(_shape(positions)) * math.prod(_shape(inputs[1])[1:])


def _traced_attention(inputs: list[Any], outputs: list[Any]) -> int:
    """The whole of both products, whatever a mask leaves out."""
    q, k, v = (_shape(value) for value in inputs[:3])
    return math.prod(_shape(outputs[0])[:-1]) * k[-2] * (q[-1] + v[-1])


def _traced_einsum(inputs: list[Any], _: list[Any]) -> int:
    shapes = [_shape(value) for value in inputs[1].node().inputs()]
    return einsum(inputs[0].toIValue(), shapes, _integers(inputs[2]) if len(inputs) > 2 else None)


def _traced_grid_sample(inputs: list[Any], outputs: list[Any]) -> int:
    mode = ("linear", "nearest", "cubic")[inputs[2].toIValue()]
    return math.prod(_shape(outputs[0])) * sampling(mode, len(_shape(inputs[0])) - 2)


def _traced_deformable(inputs: list[Any], outputs: list[Any]) -> int:
    image, weight, out = _shape(inputs[0]), _shape(inputs[1]), _shape(outputs[0])
    return deformable(image, weight, out, modulated=bool(inputs[13].toIValue()))


def _traced_fft(inputs: list[Any], outputs: list[Any], *, real: str, several: bool) -> int:
    """`real` says which side of the transform is real: "in", "out", or "" for neither."""
    before, shape = _shape(inputs[0]), _shape(outputs[0])
    dims = _integers(inputs[2])
    if dims is None:  # all, or as many of the last as there are sizes
        dims = range(-len(_integers(inputs[1]) or shape), 0)
    last = dims[-1]
    if real == "in":  # half of the last axis has been put out
        shape[last] = before[last] if before[last] // 2 + 1 == shape[last] else 2 * (shape[last] - 1)
    is_complex = inputs[0].type().dtype().is_complex
    return fft(shape, dims, real=bool(real) or not (several or is_complex))


def _integers(value: Any) -> list[int] | None:
    """Integers given to a node, one or several; None for what was left out."""
    if value.node().kind() == "prim::ListConstruct":
        return [element.toIValue() for element in value.node().inputs()]
    constant = value.toIValue()
    return [constant] if isinstance(constant, int) else constant


def _traced_weighted_sum(inputs: list[Any], _: list[Any]) -> int:
    return math.prod(_shape(inputs[0])) if inputs[0].node().kind() == "aten::mul" else 0


def _traced_pairs(inputs: list[Any], _: list[Any]) -> int:
    return max(math.prod(_shape(value)) for value in inputs[:2])


def _traced() -> dict[str, Handle]:
    table: dict[str, Handle] = {
        "aten::linear": _handle("linear", lambda i, o: math.prod(_shape(o[0])) * _shape(i[0])[-1]),
        "aten::addbmm": _handle("product", _traced_addbmm),
        "aten::tensordot": _handle("product", _traced_tensordot),
        "aten::einsum": _handle("product", _traced_einsum),
        "aten::scaled_dot_product_attention": _handle("product", _traced_attention),
        "aten::_convolution": _handle("convolution", _traced_convolution),
        "aten::grid_sampler": _handle("sampling", _traced_grid_sample),
        "torchvision::deform_conv2d": _handle("deformable", _traced_deformable),
    }
    for name in ("matmul", "mm", "bmm", "mv", "dot", "vdot", "inner"):
        table[f"aten::{name}"] = _product()
    for name in ("addmm", "baddbmm", "addmv"):
        table[f"aten::{name}"] = table[f"aten::{name}_"] = _product(1)
    for name in ("_convolution_mode", "conv1d", "conv2d", "conv3d"):
        table[f"aten::{name}"] = _handle(
            "convolution", lambda i, o: _traced_convolution(i, o, transposed=False)
        )
    for name, real in {
        "fft": "",
        "ifft": "",
        "rfft": "in",
        "ihfft": "in",
        "irfft": "out",
        "hfft": "out",
    }.items():
        table[f"aten::fft_{name}"] = _handle(
            "fft", lambda i, o, real=real: _traced_fft(i, o, real=real, several=False)
        )
        for suffix in () if "hf" in name else ("2", "n"):
            table[f"aten::fft_{name}{suffix}"] = _handle(
                "fft", lambda i, o, real=real: _traced_fft(i, o, real=real, several=True)
            )
    for name in ("sum", "mean"):
        table[f"aten::{name}"] = _handle("weighted_sum", _traced_weighted_sum)
    for name in ("cosine_similarity", "linalg_vecdot"):
        table[f"aten::{name}"] = _handle("weighted_sum", _traced_pairs)
    return table


TRACED = _traced()
"""MACs of a trace's nodes by the family of the operator, for fvcore."""


# --- Counter 2: operators as they are dispatched to kernels, in FLOPs.


MUL, SUMS = aten.mul, (aten.sum, aten.mean)


class Products:
    """Remembers which tensors an element-wise multiplication has made, until they are gone or changed."""

    def __init__(self) -> None:
        self._versions: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def add(self, tensor: Tensor) -> None:
        self._versions[tensor] = tensor._version

    def __contains__(self, tensor: Tensor) -> bool:
        return self._versions.get(tensor) == tensor._version


def dispatched() -> dict[Any, Callable[..., int]]:
    """FLOPs of operators that FlopCounterMode has no formula of, as its `custom_mapping`. For one pass."""
    products = Products()

    def multiply(*_: Any, out_val: Tensor, **__: Any) -> int:
        products.add(out_val)
        return 0

    def add_up(a: Tensor, *_: Any, **__: Any) -> int:
        return 2 * a.numel() if a in products else 0

    multiply._get_raw = add_up._get_raw = True  # pyright: ignore[reportFunctionMemberAccess]
    table: dict[Any, Callable[..., int]] = {
        MUL: multiply,
        **dict.fromkeys(SUMS, add_up),
        aten.mv: lambda a, *_, **__: 2 * math.prod(a),
        aten.dot: lambda a, *_, **__: 2 * math.prod(a),
        aten.vdot: lambda a, *_, **__: 2 * math.prod(a),
        aten.addmv: lambda _, a, *__, **___: 2 * math.prod(a),
        aten.addbmm: lambda _, a, b, *__, **___: 2 * math.prod(a) * b[-1],
        aten.addmm_: lambda _, a, b, *__, **___: 2 * math.prod(a) * b[-1],
        aten.baddbmm_: lambda _, a, b, *__, **___: 2 * math.prod(a) * b[-1],
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._fft_c2c: lambda a, dims, *_, **__: 2 * fft(a, dims, real=False),
        aten._fft_r2c: lambda a, dims, *_, **__: 2 * fft(a, dims, real=True),
        aten._fft_c2r: lambda _, dims, *__, out_shape, **___: 2 * fft(out_shape, dims, real=True),
        aten.grid_sampler_2d: _grid_sample,
        aten.grid_sampler_3d: _grid_sample,
        torch.ops.torchvision.deform_conv2d: _deformable,
    }
    return table


def _attention(q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _grid_sample(image: Shape, _: Shape, mode: int, *__: Any, out_shape: Shape, **___: Any) -> int:
    return 2 * math.prod(out_shape) * sampling(("linear", "nearest", "cubic")[mode], len(image) - 2)


def _deformable(image: Shape, weight: Shape, *rest: Any, out_shape: Shape, **_: Any) -> int:
    return 2 * deformable(image, weight, out_shape, modulated=rest[-1])


_FAMILIES = {
    "convolution": "convolution",
    "grid_sampler": "sampling",
    "_fft": "fft",
    "sum": "weighted_sum",
    "mean": "weighted_sum",
    "deform_conv2d": "deformable",
}


def family(name: str) -> str:
    """The family of a dispatched operator that does MACs; layers are products by then."""
    return next((found for part, found in _FAMILIES.items() if name.startswith(part)), "product")


# --- All other operators: what kind of work they do.

_FREE = """
    _assert_async _assert_scalar _linalg_check_errors _local_scalar_dense _unsafe_view alias as_strided
    detach empty empty_like empty_permuted empty_strided equal is_same_size lift_fresh new_empty
    new_empty_strided scalar_tensor squeeze swapaxes t transpose unsqueeze
"""
_MOVES = """
    _pad_circular _reshape_copy _to_copy _unsafe_index _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d arange block_diag cat channel_shuffle clone constant_pad_nd copy diag_embed
    diagonal_copy embedding expand_copy eye fill flip full full_like gather im2col index index_put
    index_select lift linspace masked_scatter masked_select narrow_copy native_channel_shuffle new_full
    new_ones new_zeros nonzero ones ones_like pixel_shuffle pixel_unshuffle rand randn randperm
    reflection_pad1d reflection_pad2d reflection_pad3d repeat repeat_interleave replication_pad1d
    replication_pad2d replication_pad3d resolve_conj resolve_neg roll scatter select_backward
    select_scatter slice_scatter split_with_sizes_copy stack tril tril_indices triu triu_indices
    unfold_copy upsample_nearest1d upsample_nearest2d upsample_nearest3d zero zeros zeros_like
"""
_POINTWISE = """
    _prelu_kernel complex hardswish leaky_relu log_sigmoid_forward masked_fill polar rrelu_with_noise
"""  # beside what torch tags so
_REDUCTIONS = """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _batch_norm_no_update _fused_rms_norm _log_softmax
    _native_batch_norm_legit _native_batch_norm_legit_no_training _safe_softmax _softmax
    adaptive_max_pool2d adaptive_max_pool3d all amax amin aminmax any argmax argmin col2im count_nonzero
    cumprod cumsum glu index_add linalg_vector_norm logcumsumexp logsumexp max mean median min
    native_batch_norm native_group_norm native_layer_norm norm prod scatter_add scatter_reduce sort std
    std_mean sum topk var var_mean
"""
_POOLS = "avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices"
_LISTS = {"free": _FREE, "move": _MOVES, "pointwise": _POINTWISE, "reduction": _REDUCTIONS, "pool": _POOLS}
_KINDS = {name: kind for kind, names in _LISTS.items() for name in names.split()}
_RESIZES = {
    "upsample_linear1d": 2,
    "upsample_bilinear2d": 4,
    "upsample_trilinear3d": 8,
    "upsample_bicubic2d": 20,
}


def operations(operator: Any, args: Sequence[Any], out: Any) -> int | None:
    """Element-wise operations of one call of an `OpOverload` that does no MACs; None if it is unknown.

    Pointwise, one per element put out; reductions, norms and softmax, one per element read; pooling, one per
    element of each window; copies and views, none.
    """
    own = name(operator)
    tagged = operator.namespace == "aten" and torch.Tag.pointwise in operator.tags
    kind = _KINDS.get(own, "pointwise" if tagged else "")
    first = out[0] if isinstance(out, tuple) else out
    if is_free(operator) or kind == "move":
        return 0
    if kind == "pointwise":
        return first.numel()
    if kind == "reduction":
        return args[0].numel()
    if kind == "pool":
        window = args[1] if len(args[1]) > 1 else [*args[1]] * (args[0].ndim - 2)
        return first.numel() * math.prod(window)
    return first.numel() * _RESIZES[own] if own in _RESIZES else None


def is_free(operator: Any) -> bool:
    """Whether it only makes a view or hands out memory: nothing is read or written."""
    return operator.is_view or _KINDS.get(name(operator)) == "free"


def name(operator: Any) -> str:
    """The name of an `OpOverload`: without aten's namespace, or the underscore of one that works in place."""
    own = operator.overloadpacket.__name__
    return own.removesuffix("_") if operator.namespace == "aten" else f"{operator.namespace}.{own}"
