"""Deformable sampling on a GPU: a Triton kernel each way, softmax and samples fused, float32 inside.

The operator of Wang et al. 2023 (arXiv:2211.05778) without its softmax's memory. A program takes consecutive
rows, that is the groups of a few positions, whose offsets, values and results lie side by side in memory; a
row is 16 channels, a thread 16 bytes of them. Forward it is bound by loads that the second-level cache
answers, 36 corners of 32 or 64 bytes a row; backward by as many atomic additions in float32.

Imported when it is first used: Triton is optional. TRITON_INTERPRET=1 runs it on a CPU, for tests.

Shapes: B batch, H x W positions, C channels, G = C / 16 groups, K = 9 points; a row is a group of a position.
"""

# What Triton's decorators make of these functions has no types.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

GROUP: tl.constexpr = tl.constexpr(16)
POINTS: tl.constexpr = tl.constexpr(9)
ROWS, WARPS = 64, 4  # of a program


@triton.jit
def _softmax(moves, rows, inside):
    """The greatest of nine logits, and the sum of their exponentials below it, (R) each."""
    logits = moves + rows.to(tl.int64) * (3 * POINTS) + 2 * POINTS
    top = tl.load(logits, mask=inside, other=0.0).to(tl.float32)
    for k in tl.static_range(1, POINTS):
        top = tl.maximum(top, tl.load(logits + k, mask=inside, other=0.0).to(tl.float32))
    total = tl.zeros_like(top)
    for k in tl.static_range(POINTS):
        total += tl.exp(tl.load(logits + k, mask=inside, other=0.0).to(tl.float32) - top)
    return top, total


@triton.jit
def _point(moves, rows, inside, row, column, H, W, k):  # noqa: N803
    """Where point k samples: the pixel above and to the left, and how far beyond it, (R) each."""
    move = moves + rows.to(tl.int64) * (3 * POINTS) + k
    x = column + (k // 3 - 1) + tl.load(move, mask=inside, other=0.0).to(tl.float32)
    y = row + (k % 3 - 1) + tl.load(move + POINTS, mask=inside, other=0.0).to(tl.float32)
    # Further outside nothing changes, and an integer could not hold it.
    x, y = tl.minimum(tl.maximum(x, -2.0), W + 1.0), tl.minimum(tl.maximum(y, -2.0), H + 1.0)
    left, top = tl.floor(x), tl.floor(y)
    return left.to(tl.int32), top.to(tl.int32), x - left, y - top


@triton.jit
def _corner(image, x, y, inside, H, W, C, channels):  # noqa: N803
    """Where a pixel's channels lie from the image's first of the group, and whether it is one, (R, 16)."""
    at = (image + y * W + x).to(tl.int64) * C
    return at[:, None] + channels, (inside & (x >= 0) & (x < W) & (y >= 0) & (y < H))[:, None]


@triton.jit
def _near(far, beyond: tl.constexpr):
    """The share of the pixel at a distance `far` below 1, or of the one beyond."""
    return far if beyond else 1.0 - far


@triton.jit
def _forward(value, moves, out, count, H, W, G, ROWS: tl.constexpr):  # noqa: N803
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < count
    position = rows // G
    row, column = position // W % H, position % W
    image = position - row * W - column  # its first position
    channels = (rows % G * GROUP)[:, None] + tl.arange(0, GROUP)[None, :]
    top, total = _softmax(moves, rows, inside)
    mixed = tl.zeros((ROWS, GROUP), tl.float32)
    for k in range(POINTS):  # not unrolled, which would spill registers
        x, y, fx, fy = _point(moves, rows, inside, row, column, H, W, k)
        logit = tl.load(moves + rows.to(tl.int64) * (3 * POINTS) + 2 * POINTS + k, mask=inside, other=0.0)
        weight = tl.exp(logit.to(tl.float32) - top) / total
        for corner in tl.static_range(4):
            at, lies = _corner(image, x + corner % 2, y + corner // 2, inside, H, W, G * GROUP, channels)
            pixel = tl.load(value + at, mask=lies, other=0.0).to(tl.float32)
            mixed += pixel * (weight * _near(fx, corner % 2) * _near(fy, corner // 2))[:, None]
    at = rows.to(tl.int64)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    tl.store(out + at, mixed.to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _backward(grad, value, moves, to_value, to_moves, count, H, W, G, ROWS: tl.constexpr):  # noqa: N803
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < count
    position = rows // G
    row, column = position // W % H, position % W
    image = position - row * W - column  # its first position
    channels = (rows % G * GROUP)[:, None] + tl.arange(0, GROUP)[None, :]
    first = rows.to(tl.int64) * (3 * POINTS)
    top, total = _softmax(moves, rows, inside)
    at = rows.to(tl.int64)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    given = tl.load(grad + at, mask=inside[:, None], other=0.0).to(tl.float32)
    # The nine weights and what each is worth, in columns: a softmax's gradient needs all of them.
    columns = tl.arange(0, GROUP)[None, :]
    weights = tl.zeros((ROWS, GROUP), tl.float32)
    worth = tl.zeros((ROWS, GROUP), tl.float32)
    for k in range(POINTS):  # not unrolled, which would spill registers
        x, y, fx, fy = _point(moves, rows, inside, row, column, H, W, k)
        logit = tl.load(moves + first + 2 * POINTS + k, mask=inside, other=0.0)
        weight = tl.exp(logit.to(tl.float32) - top) / total
        sample, to_x, to_y = tl.zeros_like(fx), tl.zeros_like(fx), tl.zeros_like(fx)
        for corner in tl.static_range(4):
            at, lies = _corner(image, x + corner % 2, y + corner // 2, inside, H, W, G * GROUP, channels)
            pixel = tl.load(value + at, mask=lies, other=0.0).to(tl.float32)
            dot = tl.sum(pixel * given, 1)
            across, down = _near(fx, corner % 2), _near(fy, corner // 2)
            sample += dot * across * down
            to_x += dot * down * (corner % 2 * 2 - 1)
            to_y += dot * across * (corner // 2 * 2 - 1)
            tl.atomic_add(to_value + at, given * (weight * across * down)[:, None], mask=lies, sem="relaxed")
        tl.store(to_moves + first + k, (weight * to_x).to(to_moves.dtype.element_ty), mask=inside)
        tl.store(to_moves + first + POINTS + k, (weight * to_y).to(to_moves.dtype.element_ty), mask=inside)
        weights = tl.where(columns == k, weight[:, None], weights)
        worth = tl.where(columns == k, sample[:, None], worth)
    to_logits = weights * (worth - tl.sum(weights * worth, 1)[:, None])
    at = first[:, None] + 2 * POINTS + columns
    mask = inside[:, None] & (columns < POINTS)
    tl.store(to_moves + at, to_logits.to(to_moves.dtype.element_ty), mask=mask)


@torch.library.custom_op("stmbench::dcnv3", mutates_args=())
def sample(value: Tensor, moves: Tensor) -> Tensor:
    """Weighted sums of nine bilinear samples, (B, H, W, C).

    Takes values (B, H, W, C) and, per group, nine offsets x, nine y, in pixels, and nine logits,
    (B, H, W, 3 G K).
    """
    value, moves = value.contiguous(), moves.contiguous()
    B, H, W, C = value.shape
    out = torch.empty_like(value)
    G = C // GROUP.value
    count = B * H * W * G
    if count:
        _forward[(triton.cdiv(count, ROWS),)](value, moves, out, count, H, W, G, ROWS, num_warps=WARPS)
    return out


@torch.library.custom_op("stmbench::dcnv3_backward", mutates_args=())
def sample_backward(grad: Tensor, value: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `value` and `moves`, in their types."""
    grad, value, moves = grad.contiguous(), value.contiguous(), moves.contiguous()
    B, H, W, C = value.shape
    to_value, to_moves = torch.zeros_like(value, dtype=torch.float32), torch.empty_like(moves)
    G = C // GROUP.value
    count = B * H * W * G
    if count:
        _backward[(triton.cdiv(count, ROWS),)](
            grad, value, moves, to_value, to_moves, count, H, W, G, ROWS, num_warps=WARPS
        )
    return to_value if value.dtype == torch.float32 else to_value.to(value.dtype), to_moves


def _fake(value: Tensor, moves: Tensor) -> Tensor:
    return value.new_empty(value.shape)


def _fake_backward(grad: Tensor, value: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
    return value.new_empty(value.shape), moves.new_empty(moves.shape)


def _save(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
    return sample_backward(grad, *ctx.saved_tensors)


sample.register_fake(_fake)
sample_backward.register_fake(_fake_backward)
sample.register_autograd(_differentiate, setup_context=_save)


def trial(device: str) -> None:
    """Run both kernels once, on a map of a few positions; raises what Triton raises where it cannot."""
    value = torch.rand(1, 2, 3, 16, device=device)
    moves = torch.zeros(1, 2, 3, 27, device=device)
    mixed = sample(value, moves)
    sample_backward(mixed, value, moves)
    # Nothing moves and all weigh the same: the centre's sum over its six neighbours, of nine.
    if not torch.allclose(mixed[0, 0, 1], value.sum((0, 1, 2)) / 9, atol=1e-4):
        raise RuntimeError("its answer is wrong")
