"""Layers of 4x4 convolution, per-image normalisation and activation, forward and backward.

A layer joins a small map (S channels, s x s pixels) and a big one (B channels): 2s x 2s, padding 1,
or, where s = 1, 4x4 without padding. Its weight is w[S, B, 4, 4] in both directions:

    down   small[i, p] = Σ_{j,t} w[i, j, t] big[j, q(p, t)]       convolution
    up     big[j, q]   = Σ_{i,t} w[i, j, t] small[i, p(q, t)]     transposed convolution

with q(p, t) the pixel of the big map under tap t of pixel p, and p(q, t) its inverse, of which each
q has four. So the gradient to a layer's input is the other direction with the same weight, and

    dw[i, j, t] = Σ_{n,p} small[n, i, p] big[n, j, q(p, t)]

is one formula for both, where the map on the layer's output side is the gradient dc to the
convolution's result c. With u = (c - mean c) / √(var c + ε) of one channel of one image,

    y  = act(γ u + β)         g = dy act'            act' is read off y
    dβ = Σ g      dγ = Σ g u      dc = γ / √(var c + ε) (g - mean g - u mean(g u))

One program owns a whole channel of one image (or tiles of it, where nothing is normalised; or some
channels of a single pixel), so statistics never leave it. Forward is a launch a layer. Backward is
a launch a layer too: some of its programs make dw of the layer, the others the gradient to its
input, which they carry on through normalisation and activation of the layer before: it arrives
there as dc. A tapped output's own gradient is added on the way.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pkd_kernels import reference
from pkd_kernels.opaque import once_differentiable
from pkd_kernels.reference import ConvLayer, accumulator

# Products that a program adds up, up to: (elements of the tile it works on, warps).
TILES = {2**15: (4096, 8), 2**31: (8192, 16)}
ELEMENTS_PER_THREAD = 16
PIXELS = 64  # of a program, where it need not own the whole map
POINT_CHANNELS = 32  # of a program, at most, where a channel is one pixel
WEIGHTS = 1024  # of a program that makes their gradients, at most


@triton.jit
def _sum_over_taps(
    source_ptr,
    w_ptr,
    c,
    p,
    inputs,
    channels,
    UP: tl.constexpr,
    SIDE: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    acc: tl.constexpr,
):
    """[O] What pixels p [O] of channel c, or the single pixels of channels c [O], sum up."""
    taps: tl.constexpr = (1 if SIDE == 1 else 4) if UP else 16
    length = inputs * taps
    if SIDE == 1 and not UP:
        b_sum = tl.zeros([O, K], acc)
        for start in range(0, length, K):
            k = start + tl.arange(0, K)[None, :]  # [1, K]
            b_source = tl.load(source_ptr + k, mask=k < length, other=0).to(acc)
            inside = (k < length) & (c < channels)[:, None]
            b_w = tl.load(w_ptr + (c * length)[:, None] + k, mask=inside, other=0).to(acc)
            b_sum += b_source * b_w  # [O, K]
        result = tl.sum(b_sum, 1)
    else:
        b_sum = tl.zeros([K, O], acc)
        for start in range(0, length, K):
            k = start + tl.arange(0, K)[:, None]  # [K, 1]
            if SIDE == 1:
                inside = (k < length) & (p < 16)[None, :]
                b_source = tl.load(source_ptr + k, mask=k < length, other=0).to(acc)
                at_w = (k * channels + c) * 16 + p[None, :]
                b_w = tl.load(w_ptr + at_w, mask=inside, other=0).to(acc)
            elif UP:
                i = k // 4
                y = (p // (2 * SIDE))[None, :]
                x = (p % (2 * SIDE))[None, :]
                y_small = (y + 1) // 2 - k // 2 % 2
                x_small = (x + 1) // 2 - k % 2
                inside = (y_small >= 0) & (y_small < SIDE) & (x_small >= 0) & (x_small < SIDE)
                inside &= (k < length) & (y < 2 * SIDE)
                at = (i * SIDE + y_small) * SIDE + x_small
                b_source = tl.load(source_ptr + at, mask=inside, other=0).to(acc)
                tap = (y + 1 - 2 * y_small) * 4 + x + 1 - 2 * x_small
                at_w = (i * channels + c) * 16 + tap
                b_w = tl.load(w_ptr + at_w, mask=inside, other=0).to(acc)
            else:
                y = 2 * (p // SIDE)[None, :] - 1 + k // 4 % 4
                x = 2 * (p % SIDE)[None, :] - 1 + k % 4
                inside = (y >= 0) & (y < 2 * SIDE) & (x >= 0) & (x < 2 * SIDE)
                inside &= (k < length) & (p < SIDE * SIDE)[None, :]
                at = (k // 16 * (2 * SIDE) + y) * (2 * SIDE) + x
                b_source = tl.load(source_ptr + at, mask=inside, other=0).to(acc)
                b_w = tl.load(w_ptr + c * length + k, mask=k < length, other=0).to(acc)
            b_sum += b_source * b_w  # [K, O]
        result = tl.sum(b_sum, 0)
    return result


@triton.jit
def _sum_over_pixels(
    small_ptr,
    big_ptr,
    first,
    big_channels,
    count,
    batch,
    stride_small,
    stride_big,
    SIDE: tl.constexpr,
    PIXELS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    acc: tl.constexpr,
):
    """[WEIGHTS] Gradients of a model's weights from `first` on."""
    o = first + tl.arange(0, WEIGHTS)
    i = (o // (big_channels * 16))[:, None]  # [WEIGHTS, 1]
    k = (o % (big_channels * 16))[:, None]
    b_sum = tl.zeros([WEIGHTS, PIXELS], acc)
    for _ in range(0, batch):
        for start in range(0, SIDE * SIDE, PIXELS):
            p = start + tl.arange(0, PIXELS)[None, :]  # [1, PIXELS]
            inside = (o < count)[:, None] & (p < SIDE * SIDE)
            b_small = tl.load(small_ptr + i * SIDE * SIDE + p, mask=inside, other=0).to(acc)
            if SIDE == 1:
                at = k + 0 * p
            else:
                y = 2 * (p // SIDE) - 1 + k // 4 % 4
                x = 2 * (p % SIDE) - 1 + k % 4
                inside &= (y >= 0) & (y < 2 * SIDE) & (x >= 0) & (x < 2 * SIDE)
                at = (k // 16 * (2 * SIDE) + y) * (2 * SIDE) + x
            b_big = tl.load(big_ptr + at, mask=inside, other=0).to(acc)
            b_sum += b_small * b_big  # [WEIGHTS, PIXELS]
        small_ptr += stride_small
        big_ptr += stride_big
    return tl.sum(b_sum, 1)


@triton.jit
def _back_through(
    b_grad,
    at,
    inside,
    channel,
    c,
    pixels,
    y_ptr,
    u_ptr,
    rstd_ptr,
    gamma_ptr,
    gamma_grad_ptr,
    beta_grad_ptr,
    NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    acc: tl.constexpr,
):
    """The gradient to y becomes that to c, of one channel: `channel` of its model's stack, number
    `c` of all images' channels."""
    if ACTIVATION != "none":
        b_y = tl.load(y_ptr + at, mask=inside, other=0).to(acc)
        if ACTIVATION == "tanh":
            b_grad *= 1 - b_y * b_y
        if ACTIVATION == "relu":
            b_grad = tl.where(b_y <= 0, 0, b_grad)  # so that NaN stays NaN
        if ACTIVATION == "leaky_relu":
            b_grad = tl.where(b_y > 0, b_grad, SLOPE * b_grad)
    if NORM:
        b_grad = tl.where(inside, b_grad, 0)
        b_u = tl.load(u_ptr + at, mask=inside, other=0).to(acc)
        beta_grad = tl.sum(b_grad)
        gamma_grad = tl.sum(b_grad * b_u)
        tl.store(beta_grad_ptr + c, beta_grad)
        tl.store(gamma_grad_ptr + c, gamma_grad)
        factor = tl.load(gamma_ptr + channel).to(acc) * tl.load(rstd_ptr + c).to(acc)
        b_grad = factor * (b_grad - beta_grad / pixels - b_u * (gamma_grad / pixels))
    return b_grad


@triton.jit(do_not_specialize=["inputs", "channels", "stride_xn", "stride_xm"])
def _forward_kernel(
    x_ptr,
    w_ptr,
    gamma_ptr,
    beta_ptr,
    y_ptr,
    u_ptr,
    rstd_ptr,
    inputs,
    channels,
    stride_xn,
    stride_xm,
    UP: tl.constexpr,
    SIDE: tl.constexpr,
    NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SAVE: tl.constexpr,
    EPS: tl.constexpr,
    SLOPE: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
):
    block = tl.program_id(0)
    m = tl.program_id(1)
    n = tl.program_id(2).to(tl.int64)
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    side: tl.constexpr = (4 if SIDE == 1 else 2 * SIDE) if UP else SIDE
    pixels: tl.constexpr = side * side
    if pixels == 1:
        c = block * O + tl.arange(0, O)  # [O]
        p = 0
        inside = c < channels
    else:
        tiles: tl.constexpr = (pixels + O - 1) // O
        c = block // tiles
        p = block % tiles * O + tl.arange(0, O)  # [O]
        inside = p < pixels
    source_ptr = x_ptr + n * stride_xn + m.to(tl.int64) * stride_xm
    model_ptr = w_ptr + m.to(tl.int64) * inputs * channels * 16
    b_y = _sum_over_taps(source_ptr, model_ptr, c, p, inputs, channels, UP, SIDE, O, K, acc)

    row = (n * tl.num_programs(1) + m) * channels + c
    at = row * pixels + p
    if NORM:
        b_y -= tl.sum(tl.where(inside, b_y, 0)) / pixels
        rstd = 1 / tl.sqrt(tl.sum(tl.where(inside, b_y * b_y, 0)) / pixels + EPS)
        b_y *= rstd
        if SAVE:
            tl.store(u_ptr + at, b_y, mask=inside)
            tl.store(rstd_ptr + row, rstd)
        channel = m * channels + c
        b_y = b_y * tl.load(gamma_ptr + channel).to(acc) + tl.load(beta_ptr + channel).to(acc)
    if ACTIVATION == "tanh":
        b_y = 2 * tl.sigmoid(2 * b_y) - 1
    if ACTIVATION == "relu":
        b_y = tl.where(b_y <= 0, 0, b_y)  # so that NaN stays NaN
    if ACTIVATION == "leaky_relu":
        b_y = tl.where(b_y > 0, b_y, SLOPE * b_y)
    tl.store(y_ptr + at, b_y, mask=inside)


@triton.jit(
    do_not_specialize=[
        "weight_programs",
        "batch",
        "stack",
        "inputs",
        "channels",
        "stride_xn",
        "stride_xm",
    ]
)
def _backward_kernel(
    grad_ptr,
    x_ptr,
    w_ptr,
    w_grad_ptr,
    x_grad_ptr,
    tapped_ptr,
    u_ptr,
    rstd_ptr,
    gamma_ptr,
    gamma_grad_ptr,
    beta_grad_ptr,
    weight_programs,
    batch,
    stack,
    inputs,
    channels,
    stride_xn,
    stride_xm,
    UP: tl.constexpr,
    SIDE: tl.constexpr,
    NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    TAPPED: tl.constexpr,
    SLOPE: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    PIXELS: tl.constexpr,
    WEIGHTS: tl.constexpr,
):
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    big: tl.constexpr = 4 if SIDE == 1 else 2 * SIDE
    pixels_in: tl.constexpr = SIDE * SIDE if UP else big * big
    pixels_out: tl.constexpr = big * big if UP else SIDE * SIDE
    program = tl.program_id(0)
    if program < weight_programs:
        of_model = (program // (weight_programs // stack)).to(tl.int64)
        first = program % (weight_programs // stack) * WEIGHTS
        count = inputs * channels * 16
        stride_gn = stack.to(tl.int64) * channels * pixels_out
        x_ptr += of_model * stride_xm
        grad_ptr += of_model * channels * pixels_out
        if UP:
            b_w_grad = _sum_over_pixels(
                x_ptr,
                grad_ptr,
                first,
                channels,
                count,
                batch,
                stride_xn,
                stride_gn,
                SIDE,
                PIXELS,
                WEIGHTS,
                acc,
            )
        else:
            b_w_grad = _sum_over_pixels(
                grad_ptr,
                x_ptr,
                first,
                inputs,
                count,
                batch,
                stride_gn,
                stride_xn,
                SIDE,
                PIXELS,
                WEIGHTS,
                acc,
            )
        o = first + tl.arange(0, WEIGHTS)
        tl.store(w_grad_ptr + of_model * count + o, b_w_grad, mask=o < count)
    else:
        program -= weight_programs
        if pixels_in == 1:
            blocks = (inputs + O - 1) // O
            c = program % blocks * O + tl.arange(0, O)  # [O]
            p = 0
            inside = c < inputs
        else:
            tiles: tl.constexpr = (pixels_in + O - 1) // O
            blocks = inputs * tiles
            c = program % blocks // tiles
            p = program % tiles * O + tl.arange(0, O)  # [O]
            inside = p < pixels_in
        image = (program // blocks).to(tl.int64)  # of a model
        m = image % stack
        b_grad = _sum_over_taps(
            grad_ptr + image * channels * pixels_out,
            w_ptr + m * inputs * channels * 16,
            c,
            p,
            channels,
            inputs,
            not UP,
            SIDE,
            O,
            K,
            acc,
        )
        at = (image * inputs + c) * pixels_in + p
        if TAPPED:
            b_grad += tl.load(tapped_ptr + at, mask=inside, other=0).to(acc)
        b_grad = _back_through(
            b_grad,
            at,
            inside,
            m * inputs + c,
            image * inputs + c,
            pixels_in,
            x_ptr,
            u_ptr,
            rstd_ptr,
            gamma_ptr,
            gamma_grad_ptr,
            beta_grad_ptr,
            NORM,
            ACTIVATION,
            SLOPE,
            acc,
        )
        tl.store(x_grad_ptr + at, b_grad, mask=inside)


@triton.jit(do_not_specialize=["channels"])
def _output_kernel(
    y_grad_ptr,
    y_ptr,
    u_ptr,
    rstd_ptr,
    gamma_ptr,
    gamma_grad_ptr,
    beta_grad_ptr,
    out_ptr,
    channels,
    PIXELS: tl.constexpr,
    NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
):
    """The gradient to the last layer's y becomes that to its c."""
    acc: tl.constexpr = tl.float64 if y_ptr.dtype.element_ty == tl.float64 else tl.float32
    tiles: tl.constexpr = (PIXELS + O - 1) // O
    channel = tl.program_id(0) // tiles
    c = tl.program_id(1).to(tl.int64) * channels + channel
    p = tl.program_id(0) % tiles * O + tl.arange(0, O)  # [O]
    at = c * PIXELS + p
    b_grad = _back_through(
        tl.load(y_grad_ptr + at, mask=p < PIXELS, other=0).to(acc),
        at,
        p < PIXELS,
        channel,
        c,
        PIXELS,
        y_ptr,
        u_ptr,
        rstd_ptr,
        gamma_ptr,
        gamma_grad_ptr,
        beta_grad_ptr,
        NORM,
        ACTIVATION,
        SLOPE,
        acc,
    )
    tl.store(out_ptr + at, b_grad, mask=p < PIXELS)


class _Form(NamedTuple):
    """Geometry of a layer: what the kernels are compiled for, and its channels in one model."""

    up: bool
    side: int  # of the small map
    inputs: int
    outputs: int

    def map_side(self, big: bool) -> int:
        if not big:
            return self.side
        return 4 if self.side == 1 else 2 * self.side

    @property
    def side_in(self) -> int:
        return self.map_side(not self.up)

    @property
    def side_out(self) -> int:
        return self.map_side(self.up)


def _form(layer: ConvLayer, x: Tensor, stack: int, first: bool) -> _Form:
    """Geometry of a layer on x; ValueError where the kernels know none.

    Args:
        first: the layer is the first of its chain, whose input all models may share.
    """
    weight, side = layer.weight, x.shape[-1]
    stride_2 = (layer.stride, layer.padding) == (2, 1) and side > 1
    stride_2 &= layer.transposed or (side % 2 == 0 and side > 2)
    point = (layer.stride, layer.padding) == (1, 0) and side == (1 if layer.transposed else 4)
    if x.dim() != 4 or x.shape[-2] != side or not (stride_2 or point):
        raise ValueError(
            f"stride {layer.stride} and padding {layer.padding} on a map of "
            f"{tuple(x.shape[-2:])}: the kernels know stride 2, padding 1 on even squares, and "
            "stride 1, padding 0 between 4x4 and a pixel"
        )
    if weight.dim() != 4 or weight.shape[2:] != (4, 4) or weight.shape[0] % stack:
        raise ValueError(f"weight {tuple(weight.shape)} is not that of {stack} models, 4x4")
    inputs, outputs = weight.shape[0] // stack, weight.shape[1]
    if not layer.transposed:
        inputs, outputs = outputs, inputs
    if x.shape[1] != stack * inputs and not (first and x.shape[1] == inputs):
        raise ValueError(f"{x.shape[1]} channels, but {stack} models of {inputs} are convolved")
    small = 1 if point else side if layer.transposed else side // 2
    form = _Form(layer.transposed, small, inputs, outputs)
    for name, affine in (("gamma", layer.gamma), ("beta", layer.beta)):
        if (affine is None) != (layer.gamma is None):
            raise ValueError("gamma and beta come together")
        if affine is not None and (affine.shape != (stack * outputs,) or form.side_out == 1):
            raise ValueError(
                f"{name} {tuple(affine.shape)} on {stack} models of {outputs} channels of "
                f"{form.side_out} x {form.side_out} pixels: one a channel, more than one pixel"
            )
    if layer.activation not in reference.ACTIVATIONS:
        raise ValueError(f"activation {layer.activation!r} is none of {[*reference.ACTIVATIONS]}")
    tensors = [t for t in (x, *layer[:3]) if t is not None]
    if len({(t.dtype, t.device) for t in tensors}) > 1:
        raise ValueError(f"types or devices differ: {[(t.dtype, t.device) for t in tensors]}")
    return form


def _tile(up: bool, side: int, inputs: int, channels: int, whole: bool) -> tuple[int, int, int]:
    """O, K and warps of programs that sum over taps into maps of `channels`."""
    big = 4 if side == 1 else 2 * side
    terms = inputs * ((1 if side == 1 else 4) if up else 16)
    pixels = triton.next_power_of_2(big * big if up else side * side)
    o = pixels if whole else min(pixels, PIXELS)
    size, warps = next(entry for limit, entry in TILES.items() if terms * o <= limit)
    k = min(triton.next_power_of_2(terms), max(1, size // max(o, 2)))
    if pixels == 1:
        o = min(POINT_CHANNELS, size // k, triton.next_power_of_2(channels))
    return o, k, min(warps, max(1, o * k // (32 * ELEMENTS_PER_THREAD)))


class _Done(NamedTuple):
    """A layer that has run: its input is the y of the one before."""

    layer: ConvLayer
    y: Tensor
    u: Tensor | None
    rstd: Tensor | None


def _forward_layer(x: Tensor, layer: ConvLayer, stack: int, save: bool, first: bool) -> _Done:
    form = _form(layer, x, stack, first)
    layer = ConvLayer(*(t if t is None else t.contiguous() for t in layer[:3]), *layer[3:])
    batch, channels = x.shape[0], stack * form.outputs
    y = x.new_empty(batch, channels, form.side_out, form.side_out)
    norm = layer.gamma is not None
    u = torch.empty_like(y) if norm and save else None
    rstd = x.new_empty(batch, channels, dtype=accumulator(x)) if norm and save else None
    o, k, warps = _tile(form.up, form.side, form.inputs, form.outputs, norm)
    pixels = form.side_out**2
    blocks = triton.cdiv(form.outputs, o) if pixels == 1 else form.outputs * triton.cdiv(pixels, o)
    _forward_kernel[(blocks, stack, batch)](
        x,
        layer.weight,
        layer.gamma if norm else x,
        layer.beta if norm else x,
        y,
        y if u is None else u,
        y if rstd is None else rstd,
        form.inputs,
        form.outputs,
        x.stride(0),
        0 if x.shape[1] != stack * form.inputs else form.inputs * form.side_in**2,
        UP=form.up,
        SIDE=form.side,
        NORM=norm,
        ACTIVATION=layer.activation,
        SAVE=u is not None,
        EPS=reference.NORM_EPS,
        SLOPE=reference.LEAKY_SLOPE,
        O=o,
        K=k,
        num_warps=warps,
    )
    return _Done(layer, y, u, rstd)


def _forward(x: Tensor, layers: Sequence[ConvLayer], stack: int, save: bool) -> list[_Done]:
    """The layers on x, which is contiguous, one launch each; with `save` ready for `_backward`."""
    done = []
    for layer in layers:
        done.append(_forward_layer(done[-1].y if done else x, layer, stack, save, first=not done))
    return done


class _Wanted(NamedTuple):
    """Which gradients a backward pass makes, and where those of parameters go."""

    x: bool
    parameters: list[tuple[bool, bool, bool]]  # of weight, gamma and beta of each layer
    buffers: list[tuple[Tensor | None, ...]]  # to be written into, or None

    def below(self, index: int) -> bool:
        """Whether anything before layer `index` wants a gradient."""
        return self.x or any(any(wanted) for wanted in self.parameters[:index])


class _AffineGradients:
    """Where the kernels put the gradients of one layer's gamma and beta.

    One image's go to their place at once; those of more are summed by `finish`.
    """

    def __init__(self, done: _Done, wanted: _Wanted, index: int):
        self.targets = [None, None]
        self.by_image = [done.y, done.y]  # never written where nothing is normalised
        if done.layer.gamma is None:
            return
        batch, channels = done.y.shape[:2]
        for i, parameter in enumerate(done.layer[1:3]):
            if wanted.parameters[index][1 + i]:
                buffer = wanted.buffers[index][1 + i]
                self.targets[i] = torch.empty_like(parameter) if buffer is None else buffer
            direct = batch == 1 and self.targets[i] is not None
            self.by_image[i] = self.targets[i] if direct else done.rstd.new_empty(batch, channels)

    def finish(self) -> list[Tensor | None]:
        for target, by_image in zip(self.targets, self.by_image, strict=True):
            if target is not None and target is not by_image:
                torch.sum(by_image, 0, dtype=target.dtype, out=target)
        return self.targets


def _output_gradient(grad: Tensor, done: _Done, affine: _AffineGradients) -> Tensor:
    """The gradient to the last layer's output, carried back to its convolution's result."""
    grad, norm = grad.contiguous(), done.layer.gamma is not None
    if not norm and done.layer.activation == "none":
        return grad
    batch, channels, side, _ = done.y.shape
    pixels = triton.next_power_of_2(side * side)
    o = pixels if norm else min(pixels, PIXELS)
    out = torch.empty_like(done.y)
    _output_kernel[(channels * triton.cdiv(side * side, o), batch)](
        grad,
        done.y,
        done.u if norm else grad,
        done.rstd if norm else grad,
        done.layer.gamma if norm else grad,
        *affine.by_image,
        out,
        channels,
        PIXELS=side * side,
        NORM=norm,
        ACTIVATION=done.layer.activation,
        SLOPE=reference.LEAKY_SLOPE,
        O=o,
        num_warps=min(8, max(1, o // 128)),
    )
    return out


def _backward_layer(
    grad: Tensor,
    x: Tensor,
    done: _Done,
    before: _Done | None,
    tapped: Tensor | None,
    affine: _AffineGradients | None,
    stack: int,
    weight_grad: Tensor | None,
    through: bool,
) -> Tensor | None:
    """Gradient to the weight, and `through` the layer before: that to its convolution's result.

    Args:
        grad: to the convolution's result.
        x: the layer's input.
        before: the layer that made x; without it the gradient to x itself is returned.
        tapped: gradient that x gets from outside the chain.
        weight_grad: written; None makes none.
    """
    form = _form(done.layer, x, stack, first=before is None)
    batch, pixels_in = x.shape[0], form.side_in**2
    norm = before is not None and before.layer.gamma is not None
    o, k, warps = _tile(not form.up, form.side, form.outputs, form.inputs, norm)
    pixels = min(triton.next_power_of_2(form.side**2), 256)
    count = form.inputs * form.outputs * 16
    weights = min(WEIGHTS, 4096 // pixels, triton.next_power_of_2(count))
    weight_programs = 0 if weight_grad is None else stack * triton.cdiv(count, weights)
    blocks = form.inputs * triton.cdiv(pixels_in, o)
    if pixels_in == 1:
        blocks = triton.cdiv(form.inputs, o)
    input_programs = batch * stack * blocks if through else 0
    out = x.new_empty(batch, stack * form.inputs, *x.shape[2:]) if through else grad
    _backward_kernel[(weight_programs + input_programs,)](
        grad,
        x,
        done.layer.weight,
        grad if weight_grad is None else weight_grad,
        out,
        grad if tapped is None else tapped.contiguous(),
        before.u if norm else grad,
        before.rstd if norm else grad,
        before.layer.gamma if norm else grad,
        *(affine.by_image if norm else (grad, grad)),
        weight_programs,
        batch,
        stack,
        form.inputs,
        form.outputs,
        x.stride(0),
        0 if x.shape[1] != stack * form.inputs else form.inputs * pixels_in,
        UP=form.up,
        SIDE=form.side,
        NORM=norm,
        ACTIVATION="none" if before is None else before.layer.activation,
        TAPPED=tapped is not None,
        SLOPE=reference.LEAKY_SLOPE,
        O=o,
        K=k,
        PIXELS=pixels,
        WEIGHTS=weights,
        num_warps=max(warps, min(8, max(1, weights * pixels // (32 * ELEMENTS_PER_THREAD)))),
    )
    return out if through else None


def _backward(
    x: Tensor, done: Sequence[_Done], tapped: dict[int, Tensor], stack: int, wanted: _Wanted
) -> tuple[Tensor | None, list[list[Tensor | None]]]:
    """Gradient to x, and of weight, gamma and beta of every layer; None where not wanted.

    Args:
        tapped: gradients to the outputs of layers, by their index; at least one.
    """
    last = max(tapped)
    found: list[list[Tensor | None]] = [[None] * 3 for _ in done]
    affine = _AffineGradients(done[last], wanted, last)
    grad = _output_gradient(tapped[last], done[last], affine)
    found[last][1:] = affine.finish()
    for index in range(last, -1, -1):
        this, through = done[index], wanted.below(index)
        before = done[index - 1] if index else None
        affine = _AffineGradients(before, wanted, index - 1) if before else None
        if wanted.parameters[index][0]:
            buffer = wanted.buffers[index][0]
            found[index][0] = torch.empty_like(this.layer.weight) if buffer is None else buffer
        if found[index][0] is None and not through:
            continue
        grad = _backward_layer(
            grad,
            before.y if before else x,
            this,
            before,
            tapped.get(index - 1),
            affine,
            stack,
            found[index][0],
            through,
        )
        if before and through:
            found[index - 1][1:] = affine.finish()
        if not through:
            break
    if not wanted.x:
        return None, found
    shared = grad.shape != x.shape
    return grad.unflatten(1, (stack, -1)).sum(1) if shared else grad, found


def _parameters(layers: Sequence[ConvLayer]) -> list[Tensor | None]:
    return [p for layer in layers for p in layer[:3]]


def _in_threes(values: Sequence) -> list[tuple]:
    return [tuple(values[i : i + 3]) for i in range(0, len(values), 3)]


def _save(ctx, x: Tensor, done: Sequence[_Done]) -> None:
    """Keep a chain that has run for the backward pass, which `_saved` gives back."""
    ctx.forms = [step.layer._replace(weight=None, gamma=None, beta=None) for step in done]
    tensors = [t for step in done for t in (*step.layer[:3], step.y, step.u, step.rstd)]
    ctx.save_for_backward(x, *tensors)


def _saved(ctx) -> tuple[Tensor, list[_Done]]:
    x, *tensors = ctx.saved_tensors
    done = []
    for i, form in enumerate(ctx.forms):
        weight, gamma, beta, *made = tensors[6 * i : 6 * i + 6]
        done.append(_Done(form._replace(weight=weight, gamma=gamma, beta=beta), *made))
    return x, done


def _main_grads(parameters: Sequence[Tensor | None]) -> list[tuple[Tensor | None, ...]]:
    return _in_threes([getattr(p, "main_grad", None) for p in parameters])


def _returned(found: list[list[Tensor | None]], buffers: list[tuple]) -> list[Tensor | None]:
    """What autograd gets: nothing where the gradient went into a buffer."""
    return [
        None if buffer is not None else grad
        for grads, targets in zip(found, buffers, strict=True)
        for grad, buffer in zip(grads, targets, strict=True)
    ]


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layers, taps, stack, save, *parameters):
        x = x.contiguous()
        done = _forward(x, layers, stack, save)
        if save:
            _save(ctx, x, done)
        ctx.taps, ctx.stack, ctx.buffers = taps, stack, _main_grads(parameters)
        ctx.set_materialize_grads(False)
        return tuple(done[tap].y for tap in taps)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        tapped = {tap: g for tap, g in zip(ctx.taps, grads, strict=True) if g is not None}
        if not tapped:
            return (None,) * len(ctx.needs_input_grad)
        x, done = _saved(ctx)
        needs = ctx.needs_input_grad
        wanted = _Wanted(needs[0], _in_threes(needs[5:]), ctx.buffers)
        x_grad, found = _backward(x, done, tapped, ctx.stack, wanted)
        return x_grad, None, None, None, None, *_returned(found, ctx.buffers)


class _PairOfParameters(torch.autograd.Function):
    """The last layer's outputs of a chain that has run, as functions of its parameters."""

    @staticmethod
    def forward(ctx, x, done, stack, *parameters):
        _save(ctx, x, done)
        ctx.stack, ctx.buffers = stack, _main_grads(parameters)
        real, fake = done[-1].y.detach().chunk(2)
        return real.detach(), fake.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        x, done = _saved(ctx)
        wanted = _Wanted(False, _in_threes(ctx.needs_input_grad[3:]), ctx.buffers)
        tapped = {len(done) - 1: torch.cat(grads)}
        _, found = _backward(x, done, tapped, ctx.stack, wanted)
        return None, None, None, *_returned(found, ctx.buffers)


class _PairOfInput(torch.autograd.Function):
    """A tapped output of the second half of a chain that has run, as a function of its input."""

    @staticmethod
    def forward(ctx, fake, done, stack):
        half = len(fake)
        own = [_Done(d.layer, *(t if t is None else t[half:] for t in d[1:])) for d in done]
        _save(ctx, fake.contiguous(), own)
        ctx.stack = stack
        return done[-1].y[half:].detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        fake, done = _saved(ctx)
        none = [(False,) * 3 for _ in done]
        wanted = _Wanted(True, none, [(None,) * 3 for _ in done])
        x_grad, _ = _backward(fake, done, {len(done) - 1: grad}, ctx.stack, wanted)
        return x_grad, None, None


def _recorded(*tensors: Tensor | None) -> bool:
    """Whether autograd will ask for a gradient of these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def conv_chain(
    x: Tensor, layers: Sequence[ConvLayer], *, taps: Sequence[int], stack: int = 1
) -> tuple[Tensor, ...]:
    """`reference.conv_chain`: a launch a layer forward, and a launch a layer backward.

    The gradient of a parameter that has a contiguous tensor `main_grad` is written there, in place
    of what was in it, and autograd gets none. Where no gradient arrives, nothing is written.

    Raises:
        ValueError: taps do not ascend, or a layer is none that the kernels know (see `_form`).
    """
    if list(taps) != sorted(set(taps).intersection(range(len(layers)))) or not taps:
        raise ValueError(f"taps {tuple(taps)} are not ascending indices of {len(layers)} layers")
    parameters = _parameters(layers)
    save = _recorded(x, *parameters)
    return _Chain.apply(x, tuple(layers), tuple(taps), stack, save, *parameters)


def conv_chain_pair(
    real: Tensor, fake: Tensor, layers: Sequence[ConvLayer], *, tap: int, stack: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`reference.conv_chain_pair`: run once, differentiated as two functions.

    `y_real` and `y_fake` are functions of the parameters alone (see `conv_chain` for `main_grad`),
    `f_fake` is one of `fake` alone, whose gradient takes the second half of the batch and makes no
    gradient of a weight; `f_real` is a constant.
    """
    with torch.no_grad():
        x = torch.cat([real, fake])
        done = _forward(x, layers, stack, save=True)
    y_real, y_fake = _PairOfParameters.apply(x, done, stack, *_parameters(layers))
    f_fake = _PairOfInput.apply(fake, done[: tap + 1], stack)
    return y_real, y_fake, done[tap].y[: len(real)], f_fake


def conv_norm_act(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    stack: int = 1,
    stride: int = 2,
    padding: int = 1,
    transposed: bool = False,
    activation: str = "none",
) -> Tensor:
    """`reference.conv_norm_act` in one launch; backward one, or two where y is not c itself."""
    layer = ConvLayer(weight, gamma, beta, stride, padding, transposed, activation)
    (y,) = conv_chain(x, [layer], taps=(0,), stack=stack)
    return y
