"""Every op of this package in plain PyTorch: the definition, the CPU path, the oracle of the tests.

Stacking. M independent models run as one. Activations are laid out model-major, (N, M*C, H, W) or
(N, M*D), parameters likewise, (M*Co, Ci, 4, 4): the layout of a grouped convolution, so that M = 1
is an ordinary network. Nothing here mixes two models, and nothing mixes two images.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pkd_kernels.custom_op import opaque

TERMS = ("con", "enc", "adv", "k1", "kx", "k2")
NORM_EPS = 1e-5
LEAKY_SLOPE = 0.2


class Activation(NamedTuple):
    """An activation that returns a new tensor, and the same one that overwrites its input."""

    function: Callable[[Tensor], Tensor]
    inplace: Callable[[Tensor], Tensor]


ACTIVATIONS = {
    "none": Activation(lambda y: y, lambda y: y),
    "relu": Activation(F.relu, F.relu_),
    "leaky_relu": Activation(
        lambda y: F.leaky_relu(y, LEAKY_SLOPE), lambda y: F.leaky_relu_(y, LEAKY_SLOPE)
    ),
    "tanh": Activation(torch.tanh, torch.tanh_),
}


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
    """4x4 convolution, per-image normalisation, activation, for a stack of M models.

    Args:
        x: (N, M*Ci, H, W), or (N, Ci, H, W) where every model looks at the same images.
        weight: (M*Co, Ci, 4, 4); for a transposed convolution (M*Ci, Co, 4, 4).
        gamma, beta: (M*Co,) scale and shift of the normalisation; None leaves it out. Mean and
            variance are those of one channel of one image (biased, epsilon 1e-5), which is what
            BatchNorm computes in training mode at batch size 1.
        stack: M.
        activation: a key of `ACTIVATIONS`; LeakyReLU has slope 0.2.

    Returns:
        (N, M*Co, Ho, Wo).
    """
    y = _convolve(x, weight, stack, stride, padding, transposed)
    if gamma is not None:
        # One group a channel is instance normalisation, in one op without repeated parameters.
        y = F.group_norm(y, y.shape[1], gamma, beta, NORM_EPS)
    return ACTIVATIONS[activation].function(y)


class ConvLayer(NamedTuple):
    """One layer of a `conv_chain`: the arguments of `conv_norm_act` but for its input."""

    weight: Tensor
    gamma: Tensor | None = None
    beta: Tensor | None = None
    stride: int = 2
    padding: int = 1
    transposed: bool = False
    activation: str = "none"


def conv_chain(
    x: Tensor, layers: Sequence[ConvLayer], *, taps: Sequence[int], stack: int = 1
) -> tuple[Tensor, ...]:
    """Layers one behind the other, as `conv_norm_act` each.

    Args:
        x: input of the first layer.
        taps: ascending indices of the layers whose outputs are wanted.
        stack: M.

    Returns:
        The output (N, M*Co, Ho, Wo) of every tapped layer, differentiable in x and all parameters.
    """
    outputs = []
    for layer in layers:
        x = conv_norm_act(
            x,
            layer.weight,
            layer.gamma,
            layer.beta,
            stack=stack,
            stride=layer.stride,
            padding=layer.padding,
            transposed=layer.transposed,
            activation=layer.activation,
        )
        outputs.append(x)
    return tuple(outputs[tap] for tap in taps)


def conv_chain_pair(
    real: Tensor, fake: Tensor, layers: Sequence[ConvLayer], *, tap: int, stack: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A chain run once on two batches, for two gradients that are kept apart, as a GAN needs them.

    Args:
        real, fake: (N, M*Ci, H, W) each.
        tap: index of a layer, not the last.

    Returns:
        y_real, y_fake: the last layer's outputs, to be differentiated in the parameters alone.
        f_real, f_fake: the tapped layer's; f_fake is to be differentiated in `fake` alone. Other
            derivatives are no part of this op: here PyTorch has them, the kernels do not.
    """
    f, y = conv_chain(torch.cat([real, fake]), layers, taps=(tap, len(layers) - 1), stack=stack)
    return (*y.chunk(2), *f.chunk(2))


def to_unit(images: Tensor) -> Tensor:
    """uint8 [0, 255] to [-1, 1] in the default type."""
    images = images.to(torch.get_default_dtype())
    # By a tensor, filled on the device: PyTorch on a GPU takes a number's inverse and multiplies.
    return images.div_(images.new_full((), 127.5)).sub_(1.0)


def gather(
    sources: Sequence[tuple[Tensor, Tensor]], order: Tensor, step: Tensor
) -> tuple[Tensor, ...]:
    """What a training step reads: for each model its rows of this step, laid out as a stack.

    Args:
        sources: (rows, first) each: rows (R, C, ...), uint8 images or of a floating type, and
            first (M,) int64, the row at which each model's own begin.
        order: (steps, N, M) int64, counted from the model's first row.
        step: (1,) int64, the step that is looked up.

    Returns:
        (N, M*C, ...) for each source: rows[first + order[step]], images scaled by `to_unit`.
    """
    local = order.index_select(0, step)[0]  # [N, M]
    n, m = local.shape
    found = []
    for rows, first in sources:
        taken = rows.index_select(0, (local + first).flatten())
        taken = to_unit(taken) if taken.dtype == torch.uint8 else taken
        found.append(taken.view(n, m * rows.shape[1], *rows.shape[2:]))
    return tuple(found)


def record_step(
    losses: Sequence[Sequence[Tensor]],
    rates: Tensor,
    steps: Tensor,
    *,
    history: Tensor,
    counter: Tensor,
    rate: Tensor,
    active: Tensor,
) -> None:
    """Write down a training step's losses, say how Adam takes the step, and count it, in place.

    It is called once a step, between what looks the step up by its number and Adam.

    Args:
        losses: of one network or of two, each (M,) of its generator, (M,) of its discriminator and
            (M, 6) terms, in the type of the history.
        rates: (steps, M) learning rates, in the type of `rate`.
        steps: (M,) int64, how many steps each model takes.
        history: (steps, M, networks, 8), contiguous; the losses of this step are put side by side
            into row `counter`.
        counter: (1,) int64, the number of this step, 0 for the first; 1 is added.
        rate: (M,) learning rates of this step, looked up.
        active: (M,) bool, whether this is one of a model's steps.
    """
    torch.lt(counter, steps, out=active)
    torch.index_select(rates, 0, counter, out=rate[None])
    m = len(steps)
    row = torch.cat([part.detach().view(m, -1) for parts in losses for part in parts], 1)
    history.flatten(2).index_copy_(0, counter, row[None])
    counter += 1


def _convolve(
    x: Tensor, weight: Tensor, stack: int, stride: int, padding: int, transposed: bool
) -> Tensor:
    n, _, height, _ = x.shape
    channels = weight.shape[0] if transposed else weight.shape[1] * stack
    shared = x.shape[1] != channels
    if padding == 0 and height == (1 if transposed else 4) and not shared:
        rows = x.reshape(n, stack, -1).transpose(0, 1)
        y = _PointProduct.apply(rows, weight, transposed)
        size = 4 if transposed else 1
        return y.transpose(0, 1).reshape(n, -1, size, size)
    groups = 1 if shared else stack
    convolve = F.conv_transpose2d if transposed else F.conv2d
    return convolve(x, weight, stride=stride, padding=padding, groups=groups)


class _PointProduct(torch.autograd.Function):
    """Between a 4x4 map (B channels) and a pixel (S) a convolution is one matrix W a model.

    On a CPU a batched product is faster there than a grouped convolution. It is a Function for the
    gradient to W alone: autograd's would be laid out unlike the weight and copied, and of these
    matrices, nearly all of a small network's parameters, a `main_grad` spares a copy more.

    rows [M, N, B*16] or, up, [M, N, S]; weight [M*S, B, 4, 4] -> [M, N, S] or, up, [M, N, B*16].
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, weight: Tensor, up: bool) -> Tensor:
        matrix = weight.view(rows.shape[0], -1, 16 * weight.shape[1])  # [M, S, B*16]
        return torch.bmm(rows, matrix if up else matrix.transpose(1, 2))

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        rows, weight, ctx.up = inputs
        ctx.save_for_backward(rows, weight)
        ctx.buffer = getattr(weight, "main_grad", None)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, weight = ctx.saved_tensors
        rows_grad = weight_grad = None
        if ctx.needs_input_grad[0]:
            matrix = weight.view(rows.shape[0], -1, 16 * weight.shape[1])
            rows_grad = torch.bmm(grad, matrix.transpose(1, 2) if ctx.up else matrix)
        if ctx.needs_input_grad[1]:
            small, big = (rows, grad) if ctx.up else (grad, rows)
            # An outer product has nothing to sum, and a multiplication is faster than bmm there.
            outer = torch.mul if rows.shape[1] == 1 else torch.bmm
            if ctx.buffer is None:
                weight_grad = outer(small.transpose(1, 2), big).view(weight.shape)
            else:
                out = ctx.buffer.view(rows.shape[0], small.shape[2], -1)
                outer(small.transpose(1, 2), big, out=out)
        return rows_grad, weight_grad, None


def generator_loss(
    x: Tensor | None,
    xh: Tensor,
    z1: Tensor,
    z2: Tensor,
    f_real: Tensor | None = None,
    f_fake: Tensor | None = None,
    *,
    teacher: tuple[Tensor, Tensor, Tensor] | None = None,
    weights: Tensor,
    reduction: str = "mean",
    stack: int = 1,
) -> tuple[Tensor, Tensor]:
    """The paper's Eqs. 2-6: reconstruction, latent, adversarial and distillation terms, weighted.

    term   paper                  "mean" (over a model's elements)    "norm" (the paper's letter)
    con    Eq. 2  ‖x - xh‖_1          mean |x - xh|                    per-image L1, mean of images
    enc    Eq. 3  ‖z1 - z2‖_2         mean (z1 - z2)²                  per-image L2, mean of images
    adv    Eq. 4  ‖f(x) - f(xh)‖_2    mean (f_real - f_fake)²          per-image L2, mean of images
    k1     Eq. 6  z1 against t1       mean (z1 - t1)²                  per-image L2, mean of images
    kx     Eq. 6  xh against tx       mean |xh - tx|                   per-image L1, mean of images
    k2     Eq. 6  z2 against t2       mean (z2 - t2)²                  per-image L2, mean of images

    Args:
        x, xh: (N, M*C, H, W) images and their reconstructions. Without `x` (and so without f_real
            and f_fake) the generator's own terms con, enc and adv are absent: KDGAN-1 and -3.
        z1, z2: (N, M*D) latents of the image and of its reconstruction.
        f_real, f_fake: discriminator features of x and xh, any shape (N, M*F, ...), or None.
            f_real is a constant here.
        teacher: (t1, tx, t2), shapes of (z1, xh, z2); None leaves out k1, kx and k2.
        weights: (6,) or, for each model, (M, 6), in the order of `TERMS`; constants. Weight 0
            switches a term off: it is neither computed nor shown.
        reduction: "mean" or "norm". |.| has gradient 0 at ties, the L2 norm gradient 0 at zero.
        stack: M.

    Returns:
        total: (M,) weighted sums, differentiable in xh, z1, z2 and f_fake alone. Both results are
            float64 for float64 inputs and float32 otherwise.
        terms: (M, 6) unweighted terms for display, 0 where absent; not differentiable.

    Raises:
        ValueError: the teacher's outputs require grad (the distillation loss must not train the
            teacher), the reduction is unknown, or shapes do not fit.
    """
    check_generator_inputs(x, xh, z1, z2, f_real, f_fake, teacher, weights, reduction, stack)
    t1, tx, t2 = teacher if teacher is not None else (None, None, None)
    x, f_real = (t if t is None else t.detach() for t in (x, f_real))
    pairs = (
        (1, xh, x),
        (2, z1, z2 if x is not None else None),
        (2, f_fake, f_real),
        (2, z1, t1),
        (1, xh, tx),
        (2, z2, t2),
    )
    acc = accumulator(xh, z1, z2, f_fake)
    weights = weights.detach().to(acc).expand(stack, len(TERMS))
    absent = weights.new_zeros(stack)
    terms = torch.stack(
        [
            absent if b is None else _distance(a.to(acc), b.to(acc), order, reduction, on)
            for (order, a, b), on in zip(pairs, weights.T != 0, strict=True)
        ],
        dim=1,
    )
    return (weights * terms).sum(1), terms.detach()


def _distance(a: Tensor, b: Tensor, order: int, reduction: str, on: Tensor) -> Tensor:
    """(M,) distance of two (N, M*F, ...) tensors: L1 for order 1, squared or plain L2 for 2.

    0, in value and gradient, for a model that is not `on` (M,), whatever the tensors hold.
    """
    difference = (a - b).reshape(a.shape[0], len(on), -1)  # [N, M, F]
    difference = torch.where(on[:, None], difference, 0)
    if reduction == "mean":
        return (difference.abs() if order == 1 else difference * difference).mean((0, 2))
    return torch.linalg.vector_norm(difference, order, dim=2).mean(0)


def accumulator(*tensors: Tensor | None) -> torch.dtype:
    """The type that these tensors are summed in, and losses returned in; None is no tensor."""
    wide = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return torch.float64 if wide else torch.float32


def check_pair(a: Tensor, b: Tensor, stack: int) -> None:
    """ValueError unless a and b are of one shape, (N, M*F, ...), N and F at least 1."""
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    if a.dim() < 2 or a.numel() == 0 or a.shape[1] % stack:
        raise ValueError(f"shape {tuple(a.shape)} is not that of {stack} models, (N, M*F, ...)")


def check_generator_inputs(
    x: Tensor | None,
    xh: Tensor,
    z1: Tensor,
    z2: Tensor,
    f_real: Tensor | None,
    f_fake: Tensor | None,
    teacher: tuple[Tensor, Tensor, Tensor] | None,
    weights: Tensor,
    reduction: str,
    stack: int,
) -> None:
    """Refuse, with a ValueError that says why, what `generator_loss` cannot take."""
    if reduction not in ("mean", "norm"):
        raise ValueError(f"reduction must be 'mean' or 'norm', not {reduction!r}")
    if weights.shape not in ((len(TERMS),), (stack, len(TERMS))):
        raise ValueError(f"weights have shape {tuple(weights.shape)}, not (6,) or ({stack}, 6)")
    if (f_real is None) != (f_fake is None) or (x is None and f_real is not None):
        raise ValueError("f_real and f_fake come together, and only with x")
    pairs = [(z1, z2)]
    if x is not None:
        pairs.append((xh, x))
    if f_fake is not None:
        pairs.append((f_fake, f_real))
    if teacher is not None:
        if any(t.requires_grad for t in teacher):
            raise ValueError(
                "a teacher output requires grad, but the distillation loss must not train the "
                "teacher: detach() its outputs first"
            )
        pairs += zip((z1, xh, z2), teacher, strict=True)
    for a, b in pairs:
        check_pair(a, b, stack)
        if a.shape[0] != xh.shape[0]:
            raise ValueError(f"{a.shape[0]} images beside {xh.shape[0]}")


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor, *, stack: int = 1) -> Tensor:
    """Binary cross-entropy of D, from logits: BCE(D(x), 1) + BCE(D(xh), 0), averaged over images.

    -log σ(r) = softplus(-r) and -log(1 - σ(f)) = softplus(f), which do not overflow.

    Args:
        logits_real, logits_fake: (N, M) or any (N, M*F, ...).

    Returns:
        (M,) losses, float64 for float64 inputs and float32 otherwise.
    """
    check_pair(logits_real, logits_fake, stack)
    acc = accumulator(logits_real, logits_fake)

    def per_model(logits: Tensor) -> Tensor:
        return F.softplus(logits).reshape(logits.shape[0], stack, -1).mean((0, 2))

    return per_model(-logits_real.to(acc)) + per_model(logits_fake.to(acc))


def novelty_score(z1: Tensor, z2: Tensor, *, stack: int = 1) -> Tensor:
    """Mean square of z1 - z2 for each image and model: Eq. 3's novelty score, squared.

    Args:
        z1, z2: (N, M*D).

    Returns:
        (N, M) scores, at least 0; higher is more novel. float64 for float64 inputs and float32
        otherwise.
    """
    check_pair(z1, z2, stack)
    acc = accumulator(z1, z2)
    return (z1.to(acc) - z2.to(acc)).reshape(z1.shape[0], stack, -1).square().mean(2)


def check_adam_inputs(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    sizes: Sequence[int],
) -> None:
    """Refuse, with a ValueError that says why, what `adam_step` cannot take."""
    flat = (param, grad, exp_avg, exp_avg_sq)
    if not all(t.dim() == 1 and t.is_contiguous() and t.shape == param.shape for t in flat):
        raise ValueError("param, grad, exp_avg and exp_avg_sq must be flat, contiguous, one size")
    if param.numel() != step.numel() * sum(sizes):
        raise ValueError(f"{param.numel()} elements are not {step.numel()} models of {sum(sizes)}")


@torch.no_grad()
def adam_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    lr: Tensor,
    active: Tensor,
    *,
    sizes: Sequence[int],
    betas: tuple[float, float],
    eps: float,
    arrivals: Tensor | None = None,
) -> None:
    """One Adam step, in place, on one flat buffer with the parameters of M models.

    Every parameter of a stack is M equal blocks, one a model; the buffer is those parameters one
    behind the other.

    Args:
        param, grad, exp_avg, exp_avg_sq: (P,) flat buffers.
        step: (M,) float32, steps each model has taken; counted up here.
        lr: (M,) float32 learning rates.
        active: (M,) bool. An inactive model keeps parameters, moments and step as they are.
        sizes: elements of one model in each parameter; P = M * sum(sizes).
        arrivals: (1,) int32, 0: what the kernel counts its programs in, and leaves at 0. It
            belongs to one optimizer; None makes one for this call. Not used here.
    """
    check_adam_inputs(param, grad, exp_avg, exp_avg_sq, step, sizes)
    update(param, grad, exp_avg, exp_avg_sq, step, lr, active, list(sizes), *betas, eps)


@opaque(fake=lambda *args: None, mutates=("param", "exp_avg", "exp_avg_sq", "step"))
def update(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    lr: Tensor,
    active: Tensor,
    sizes: list[int],
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """What `adam_step` does; torch.compile could not trace that rates and counts are read."""
    # Neighbours that share everything go together: nearly always all of them at once.
    models = zip(active.tolist(), lr.tolist(), step.tolist(), strict=True)
    runs = [(key, len(list(run))) for key, run in groupby(models)]
    lengths = _lengths(tuple(sizes), tuple(length for _, length in runs))
    counts = [step.new_tensor(count + 1) for (_, _, count), _ in runs]
    pieces = [t.split(lengths) for t in (param, grad, exp_avg, exp_avg_sq)]
    pieces.append(counts * (len(lengths) // len(runs)))  # by parameter, then by run
    by_rate: dict[float, list[int]] = {}
    for i, ((on, rate, _), _) in enumerate(runs):
        if on:
            by_rate.setdefault(rate, []).append(i)
    for rate, own in by_rate.items():
        *flat, after = ([t for i in own for t in split[i :: len(runs)]] for split in pieces)
        torch._fused_adam_(
            *flat,
            max_exp_avg_sqs=[],
            state_steps=after,
            lr=rate,
            beta1=beta1,
            beta2=beta2,
            weight_decay=0.0,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )
    step += active


@lru_cache(maxsize=1024)
def _lengths(sizes: tuple[int, ...], runs: tuple[int, ...]) -> list[int]:
    """Lengths of the stretches of the flat buffer that hold one parameter of one run of models."""
    if len(runs) == 1:
        return [runs[0] * sum(sizes)]
    return [size * run for size in sizes for run in runs]
