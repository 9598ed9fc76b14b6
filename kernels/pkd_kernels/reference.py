"""Every op of this package in plain PyTorch: the definition, the CPU path, the oracle of the tests.

Stacking: M independent models run as one. Activations are model-major, (N, M*C, H, W) or (N, M*D),
and so are parameters, (M*Co, Ci, 4, 4). This is the layout of a grouped convolution, so M = 1 is an
ordinary network. No op mixes two models or two images.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

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
        x: (N, M*Ci, H, W), or (N, Ci, H, W) where all models share the images.
        weight: (M*Co, Ci, 4, 4); for a transposed convolution (M*Ci, Co, 4, 4).
        gamma: (M*Co,) scale of the normalisation; None omits the normalisation. Mean and variance
            are those of one channel of one image (biased, epsilon 1e-5), as BatchNorm computes them
            in training mode at batch size 1.
        beta: (M*Co,) shift of the normalisation; None with gamma.
        stack: M.
        stride: 2, or 1 between a 4x4 map and a single pixel.
        padding: 1 with stride 2, 0 with stride 1.
        transposed: whether the convolution is transposed.
        activation: a key of `ACTIVATIONS`; LeakyReLU has slope 0.2.

    Returns:
        (N, M*Co, Ho, Wo).
    """
    y = _convolve(x, weight, stack, stride, padding, transposed)
    if gamma is not None:
        # One group per channel is instance normalisation, without repeating the parameters.
        y = F.group_norm(y, y.shape[1], gamma, beta, NORM_EPS)
    return ACTIVATIONS[activation].function(y)


class ConvLayer(NamedTuple):
    """One layer of a `conv_chain`: the arguments of `conv_norm_act` except its input."""

    weight: Tensor
    gamma: Tensor | None = None
    beta: Tensor | None = None
    stride: int = 2
    padding: int = 1
    transposed: bool = False
    activation: str = "none"

    def map(self, function: Callable[[Tensor], Tensor]) -> "ConvLayer":
        """The layer with a function applied to its weight, gamma and beta."""
        return self._replace(
            weight=function(self.weight),
            gamma=None if self.gamma is None else function(self.gamma),
            beta=None if self.beta is None else function(self.beta),
        )


def conv_chain(
    x: Tensor, layers: Sequence[ConvLayer], *, taps: Sequence[int], stack: int = 1
) -> tuple[Tensor, ...]:
    """A sequence of layers, each a `conv_norm_act`.

    Args:
        x: input of the first layer.
        layers: parameters and options of each layer.
        taps: ascending indices of the layers whose outputs are returned.
        stack: M.

    Returns:
        The output (N, M*Co, Ho, Wo) of each tapped layer, differentiable in x and all parameters.
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


class GANLayers(NamedTuple):
    """The chains of GANomaly's networks.

    Attributes:
        encoder: G_E, from images to latents.
        decoder: G_D, from latents to images.
        reencoder: G_R, from images to latents.
        discriminator: D, from images to logits, at least two layers; empty for none.
    """

    encoder: Sequence[ConvLayer]
    decoder: Sequence[ConvLayer]
    reencoder: Sequence[ConvLayer]
    discriminator: Sequence[ConvLayer] = ()

    @property
    def layers(self) -> list[ConvLayer]:
        """All layers, in order."""
        return [layer for chain in self for layer in chain]


class GANOutput(NamedTuple):
    """Outputs of `gan_pass`; those of a discriminator are None where there is none."""

    z1: Tensor  # (N, M*D, 1, 1) = G_E(x)
    xh: Tensor  # (N, M*C, H, W) = G_D(z1)
    z2: Tensor  # (N, M*D, 1, 1) = G_R(xh)
    logits_real: Tensor | None = None  # D(x), of its last layer
    logits_fake: Tensor | None = None  # D(xh)
    f_real: Tensor | None = None  # output of D's layer before the last, a constant
    f_fake: Tensor | None = None


def gan_pass(x: Tensor, gans: Sequence[GANLayers], *, stack: int = 1) -> tuple[GANOutput, ...]:
    """Forward pass of GANs on the same images, for one gradient of all their losses.

    The logits are functions of the discriminator's parameters alone, f_fake of xh alone. So the
    gradient of a sum of generator and discriminator losses gives each network its own loss.

    Args:
        x: (N, M*C, H, W) images, a constant.
        gans: the networks, each for images of x's shape.
        stack: M.
    """
    return tuple(_gan_output(x.detach(), gan, stack) for gan in gans)


def _gan_output(x: Tensor, gan: GANLayers, stack: int) -> GANOutput:
    encoder, decoder, reencoder, discriminator = gan
    ends = (len(encoder), len(encoder) + len(decoder), len(gan.layers) - len(discriminator))
    generator = [*encoder, *decoder, *reencoder]
    z1, xh, z2 = conv_chain(x, generator, taps=[end - 1 for end in ends], stack=stack)
    if not discriminator:
        return GANOutput(z1, xh, z2)
    tap = len(discriminator) - 2
    both = torch.cat([x, xh.detach()])
    f, y = conv_chain(both, discriminator, taps=(tap, tap + 1), stack=stack)
    constants = [layer.map(Tensor.detach) for layer in discriminator[:-1]]
    (f_fake,) = conv_chain(xh, constants, taps=(tap,), stack=stack)
    (y_real, y_fake), (f_real, _) = y.chunk(2), f.detach().chunk(2)
    return GANOutput(z1, xh, z2, y_real, y_fake, f_real, f_fake)


def scale_pixels(images: Tensor) -> Tensor:
    """Scale uint8 pixels [0, 255] to [-1, 1], in the default type."""
    images = images.to(torch.get_default_dtype())
    # Divide by a tensor: by a number, PyTorch on a GPU multiplies with the rounded inverse.
    return images.div_(images.new_full((), 127.5)).sub_(1.0)


def gather(
    sources: Sequence[tuple[Tensor, Tensor]], order: Tensor, step: Tensor
) -> tuple[Tensor, ...]:
    """Gather the inputs of a training step: each model's rows of this step, as a stack.

    Args:
        sources: pairs (rows, first): rows (R, C, ...), uint8 images or of a floating type, and
            first (M,) int64, the index of each model's first row.
        order: (steps, N, M) int64 row indices, relative to the model's first row.
        step: (1,) int64, the number of the step. After the last one this definition raises
            IndexError; the kernel, which cannot, reads the last one.

    Returns:
        (N, M*C, ...) for each source: rows[first + order[step]], images after `scale_pixels`.
    """
    local = order.index_select(0, step)[0]  # [N, M]
    n, m = local.shape
    outputs = []
    for rows, first in sources:
        batch = rows.index_select(0, (local + first).flatten())
        batch = scale_pixels(batch) if batch.dtype == torch.uint8 else batch
        outputs.append(batch.view(n, m * rows.shape[1], *rows.shape[2:]))
    return tuple(outputs)


def record_step(
    losses: Sequence[Sequence[Tensor]],
    rates: Tensor,
    steps: Tensor,
    *,
    history: Tensor,
    counter: Tensor,
    rate: Tensor,
    active: Tensor,
    step: Tensor,
    corrections: Tensor,
    betas: tuple[float, float],
) -> None:
    """Record a step's losses, prepare Adam, and increment the step of the epoch, in place.

    Prepares Adam as `adam_prepare` does, with the rates and active models of this step.

    Call it once a step, after everything that looks the step up by its number and before Adam.
    After the last step this definition raises IndexError; the kernel, which cannot, records nothing
    and leaves all models inactive.

    Args:
        losses: for one or two networks each: (M,) generator losses, (M,) discriminator losses and
            (M, 6) terms, in the type of the history.
        rates: (steps, M) learning rates, in the type of `rate`.
        steps: (M,) int64, the number of steps that each model takes.
        history: (steps, M, networks, 8), contiguous; row `counter` receives the step's losses.
        counter: (1,) int64, the number of this step, from 0; incremented.
        rate: (M,) receives the learning rates of this step.
        active: (M,) bool, receives whether each model takes this step.
        step: (M,), Adam's number of steps of each model; see `adam_prepare`, also for the next two.
        corrections: (2, M).
        betas: decay rates of Adam's moments.
    """
    torch.lt(counter, steps, out=active)
    torch.index_select(rates, 0, counter, out=rate[None])
    m = len(steps)
    row = torch.cat([part.detach().view(m, -1) for parts in losses for part in parts], 1)
    history.flatten(2).index_copy_(0, counter, row[None])
    counter += 1
    step += active


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
    """A convolution between a 4x4 map (B channels) and a pixel (S channels): one matrix per model.

    On a CPU a batched matrix product is faster here than a grouped convolution. This is an autograd
    function because of the weight gradient: autograd's has another layout than the weight and is
    copied. These matrices are nearly all parameters of a small network; `main_grad` saves another
    copy.

    rows [M, N, B*16] or, up, [M, N, S]; weight [M*S, B, 4, 4] -> [M, N, S] or, up, [M, N, B*16].
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, weight: Tensor, up: bool) -> Tensor:
        matrix = weight.view(rows.shape[0], -1, 16 * weight.shape[1])  # [M, S, B*16]
        return torch.bmm(rows, matrix if up else matrix.transpose(1, 2))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        rows, weight, ctx.up = inputs
        ctx.save_for_backward(rows, weight)
        ctx.buffer = getattr(weight, "main_grad", None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, weight = ctx.saved_tensors
        rows_grad = weight_grad = None
        if ctx.needs_input_grad[0]:
            matrix = weight.view(rows.shape[0], -1, 16 * weight.shape[1])
            rows_grad = torch.bmm(grad, matrix.transpose(1, 2) if ctx.up else matrix)
        if ctx.needs_input_grad[1]:
            small, big = (rows, grad) if ctx.up else (grad, rows)
            # With one image the product has nothing to sum: a multiplication is faster than bmm.
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

    term   paper                  "mean" (over a model's elements)    "norm" (as in the paper)
    con    Eq. 2  ‖x - xh‖_1          mean |x - xh|                    per-image L1, mean of images
    enc    Eq. 3  ‖z1 - z2‖_2         mean (z1 - z2)²                  per-image L2, mean of images
    adv    Eq. 4  ‖f(x) - f(xh)‖_2    mean (f_real - f_fake)²          per-image L2, mean of images
    k1     Eq. 6  z1 against t1       mean (z1 - t1)²                  per-image L2, mean of images
    kx     Eq. 6  xh against tx       mean |xh - tx|                   per-image L1, mean of images
    k2     Eq. 6  z2 against t2       mean (z2 - t2)²                  per-image L2, mean of images

    Args:
        x: (N, M*C, H, W) images. None (then also f_real and f_fake) omits the GANomaly terms con,
            enc and adv: KDGAN-1 and -3.
        xh: (N, M*C, H, W) reconstructions.
        z1: (N, M*D) latents of the images.
        z2: (N, M*D) latents of the reconstructions.
        f_real: discriminator features of x, any shape (N, M*F, ...), or None; a constant.
        f_fake: discriminator features of xh, or None.
        teacher: (t1, tx, t2), shaped as (z1, xh, z2); None omits k1, kx and k2.
        weights: (6,) or, for each model, (M, 6), in the order of `TERMS`; constants. Weight 0
            disables a term: it is not computed and its value is 0.
        reduction: "mean" or "norm". |.| has gradient 0 at ties, the L2 norm gradient 0 at zero.
        stack: M.

    Returns:
        (total, terms), float64 for float64 inputs and float32 otherwise. total (M,) are weighted
        sums, differentiable in xh, z1, z2 and f_fake alone. terms (M, 6) are unweighted, for
        display, 0 where absent; not differentiable.

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
            absent
            if a is None or b is None
            else _distance(a.to(acc), b.to(acc), order, reduction, enabled)
            for (order, a, b), enabled in zip(pairs, weights.T != 0, strict=True)
        ],
        dim=1,
    )
    return (weights * terms).sum(1), terms.detach()


def _distance(a: Tensor, b: Tensor, order: int, reduction: str, enabled: Tensor) -> Tensor:
    """(M,) distances of two (N, M*F, ...) tensors: L1 for order 1, squared or plain L2 for 2.

    Value and gradient are 0 for a model that is not `enabled` (M,), even where inputs are NaN.
    """
    difference = (a - b).reshape(a.shape[0], len(enabled), -1)  # [N, M, F]
    difference = torch.where(enabled[:, None], difference, 0)
    if reduction == "mean":
        return (difference.abs() if order == 1 else difference * difference).mean((0, 2))
    return torch.linalg.vector_norm(difference, order, dim=2).mean(0)


def accumulator(*tensors: Tensor | None) -> torch.dtype:
    """The type in which these tensors are summed and losses are returned; None is ignored."""
    wide = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return torch.float64 if wide else torch.float32


def check_pair(a: Tensor, b: Tensor, stack: int) -> None:
    """Raise ValueError unless a and b have one shape (N, M*F, ...) with N and F at least 1."""
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    if a.dim() < 2 or a.numel() == 0 or a.shape[1] % stack:
        raise ValueError(f"shape {tuple(a.shape)} does not fit {stack} models, (N, M*F, ...)")


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
    """Raise ValueError where the inputs of `generator_loss` do not fit."""
    if reduction not in ("mean", "norm"):
        raise ValueError(f"reduction must be 'mean' or 'norm', not {reduction!r}")
    if weights.shape not in ((len(TERMS),), (stack, len(TERMS))):
        raise ValueError(f"weights have shape {tuple(weights.shape)}, not (6,) or ({stack}, 6)")
    if (f_real is None) != (f_fake is None) or (x is None and f_real is not None):
        raise ValueError("f_real and f_fake must be given together, and only with x")
    pairs = [(z1, z2)]
    if x is not None:
        pairs.append((xh, x))
    if f_fake is not None and f_real is not None:
        pairs.append((f_fake, f_real))
    if teacher is not None:
        if any(t.requires_grad for t in teacher):
            raise ValueError(
                "a teacher output requires grad, but the distillation loss must not train the "
                "teacher: detach() the outputs first"
            )
        pairs += zip((z1, xh, z2), teacher, strict=True)
    for a, b in pairs:
        check_pair(a, b, stack)
        if a.shape[0] != xh.shape[0]:
            raise ValueError(f"batch sizes differ: {a.shape[0]} and {xh.shape[0]} images")


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor, *, stack: int = 1) -> Tensor:
    """Binary cross-entropy of D from logits, BCE(D(x), 1) + BCE(D(xh), 0), averaged over images.

    -log σ(r) = softplus(-r) and -log(1 - σ(f)) = softplus(f), which do not overflow.

    Args:
        logits_real: (N, M) or any (N, M*F, ...), logits of real images.
        logits_fake: the same of generated images.
        stack: M.

    Returns:
        (M,) losses, float64 for float64 inputs and float32 otherwise.
    """
    check_pair(logits_real, logits_fake, stack)
    acc = accumulator(logits_real, logits_fake)

    def per_model(logits: Tensor) -> Tensor:
        return F.softplus(logits).reshape(logits.shape[0], stack, -1).mean((0, 2))

    return per_model(-logits_real.to(acc)) + per_model(logits_fake.to(acc))


def gan_losses(
    x: Tensor | None,
    xh: Tensor,
    z1: Tensor,
    z2: Tensor,
    f_real: Tensor | None,
    f_fake: Tensor | None,
    logits_real: Tensor,
    logits_fake: Tensor,
    *,
    teacher: tuple[Tensor, Tensor, Tensor] | None = None,
    weights: Tensor,
    reduction: str = "mean",
    stack: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """`generator_loss` and `discriminator_loss` of a GAN: (total, discriminator loss, terms)."""
    total, terms = generator_loss(
        x,
        xh,
        z1,
        z2,
        f_real,
        f_fake,
        teacher=teacher,
        weights=weights,
        reduction=reduction,
        stack=stack,
    )
    return total, discriminator_loss(logits_real, logits_fake, stack=stack), terms


def novelty_score(z1: Tensor, z2: Tensor, *, stack: int = 1) -> Tensor:
    """Mean square of z1 - z2 for each image and model: Eq. 3's novelty score, squared.

    Args:
        z1: (N, M*D) latents of the images.
        z2: (N, M*D) latents of the reconstructions.
        stack: M.

    Returns:
        (N, M) scores, at least 0; higher means more novel. float64 for float64 inputs and float32
        otherwise.
    """
    check_pair(z1, z2, stack)
    acc = accumulator(z1, z2)
    return (z1.to(acc) - z2.to(acc)).reshape(z1.shape[0], stack, -1).square().mean(2)


# Columns of `novelty_parts`.
NOVELTY_PARTS = ("latent", "energy", "reconstruction")


def check_novelty_inputs(z1: Tensor, z2: Tensor, x: Tensor, xh: Tensor, stack: int) -> bool:
    """Whether all models share the images x; ValueError unless the inputs fit each other."""
    check_pair(z1, z2, stack)
    check_pair(xh, xh, stack)
    shared = stack > 1 and x.dim() > 1 and x.shape[1] * stack == xh.shape[1]
    channels = xh.shape[1] // stack if shared else xh.shape[1]
    if x.shape != (xh.shape[0], channels, *xh.shape[2:]):
        raise ValueError(f"shapes differ: {tuple(x.shape)} and {tuple(xh.shape)}")
    if xh.shape[0] != z1.shape[0]:
        raise ValueError(f"batch sizes differ: {z1.shape[0]} and {xh.shape[0]} images")
    return shared


@torch.no_grad()
def novelty_parts(z1: Tensor, z2: Tensor, x: Tensor, xh: Tensor, *, stack: int = 1) -> Tensor:
    """The numbers that novelty scores are computed from, for each image and model, in one pass.

    Args:
        z1: (N, M*D) latents of the images.
        z2: (N, M*D) latents of the reconstructions.
        x: (N, M*C, H, W) images, or (N, C, H, W) shared by all models.
        xh: (N, M*C, H, W) reconstructions.
        stack: M.

    Returns:
        (N, M, 3): mean square of z1 - z2, mean square of z1, and mean of |x - xh|. float64 for
        float64 inputs and float32 otherwise; without gradient.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    shared = check_novelty_inputs(z1, z2, x, xh, stack)
    acc = accumulator(z1, z2, x, xh)
    rows = (len(z1), stack, -1)
    first, second = (z.to(acc).reshape(rows) for z in (z1, z2))
    images = x.to(acc).reshape(len(x), 1 if shared else stack, -1)
    errors = images - xh.to(acc).reshape(rows)
    parts = ((first - second).square(), first.square(), errors.abs())
    return torch.stack([part.mean(2) for part in parts], 2)


def check_adam_inputs(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    corrections: Tensor,
    sizes: Sequence[int],
    lengths: Sequence[int] | None,
    lr_factors: Sequence[float] | None,
) -> None:
    """Raise ValueError where the inputs of `adam_step` do not fit."""
    flat = (param, grad, exp_avg, exp_avg_sq)
    if not all(t.dim() == 1 and t.is_contiguous() and t.shape == param.shape for t in flat):
        raise ValueError(
            "param, grad, exp_avg and exp_avg_sq must be flat, contiguous and of one size"
        )
    least = [step.numel() * size for size in sizes]
    taken = least if lengths is None else list(lengths)
    short = len(taken) != len(least) or any(a < b for a, b in zip(taken, least, strict=False))
    if short or param.numel() != sum(taken):
        raise ValueError(
            f"{param.numel()} elements do not fit {step.numel()} models of {sum(sizes)} elements"
        )
    if corrections.shape != (2, step.numel()):
        raise ValueError(
            f"corrections have shape {tuple(corrections.shape)}, not (2, {step.numel()})"
        )
    if lr_factors is not None and len(lr_factors) != len(sizes):
        raise ValueError(f"{len(lr_factors)} factors do not fit {len(sizes)} parameters")


@torch.no_grad()
def adam_prepare(
    step: Tensor, lr: Tensor, active: Tensor, corrections: Tensor, *, betas: tuple[float, float]
) -> None:
    """Count a step of every active model, in place, before `adam_step`.

    Args:
        step: (M,) float32, the steps that each model has taken; incremented where active.
        lr: (M,) learning rates.
        active: (M,) bool.
        corrections: (2, M), receives lr / (1 - β1ᵗ) and √(1 - β2ᵗ) for the kernel of `adam_step`,
            with t of this step. This definition leaves it as it is.
        betas: decay rates of the moments.
    """
    step += active


@torch.no_grad()
def adam_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    lr: Tensor,
    active: Tensor,
    corrections: Tensor,
    *,
    sizes: Sequence[int],
    betas: tuple[float, float],
    eps: float,
    lengths: Sequence[int] | None = None,
    lr_factors: Sequence[float] | None = None,
) -> None:
    """One Adam step, in place, on one flat buffer with the parameters of M models.

    Every parameter of a stack is M equal blocks, one for each model, and padding with zeros; the
    buffer is the concatenation of the parameters.

    Args:
        param: (P,) flat parameters, updated.
        grad: (P,) flat gradients.
        exp_avg: (P,) flat first moments, updated.
        exp_avg_sq: (P,) flat second moments, updated.
        step: (M,) float32, the number t of this step of each model, from 1: after `adam_prepare`.
        lr: (M,) learning rates.
        active: (M,) bool. An inactive model keeps parameters and moments.
        corrections: (2, M) of `adam_prepare`, from which the kernel takes the rates. This
            definition computes them from step and lr.
        sizes: elements of one model in each parameter.
        betas: decay rates of the moments.
        eps: added to the denominator.
        lengths: elements of the buffer that each parameter takes, at least M * size; their sum is
            P. None is without padding.
        lr_factors: one for each parameter p; the rate of model m is lr[m] * lr_factors[p]. None
            sets all to 1.
    """
    flat = (param, grad, exp_avg, exp_avg_sq)
    check_adam_inputs(*flat, step, corrections, sizes, lengths, lr_factors)
    factors = (1.0,) * len(sizes) if lr_factors is None else tuple(lr_factors)
    # Neighbouring models with equal activity, rate and step are one run: usually all models.
    models = zip(active.tolist(), lr.tolist(), step.tolist(), strict=True)
    runs = [(key, len(list(run))) for key, run in groupby(models)]
    taken = tuple(len(step) * size for size in sizes) if lengths is None else tuple(lengths)
    pieces = _adam_pieces(tuple(sizes), taken, factors, tuple(length for _, length in runs))
    counts = [step.new_tensor(count) for (_, _, count), _ in runs]
    tensors = [t.split([length for length, _, _ in pieces]) for t in flat]
    tensors.append(tuple(counts[run] for _, _, run in pieces))
    by_rate: dict[float, list[int]] = {}
    for i, (_, factor, run) in enumerate(pieces):
        (enabled, rate, _), _ = runs[run]
        if enabled:
            by_rate.setdefault(rate * factor, []).append(i)
    for rate, chosen in by_rate.items():
        params, grads, avgs, avg_sqs, counted = ([split[i] for i in chosen] for split in tensors)
        torch._fused_adam_(
            params,
            grads,
            avgs,
            avg_sqs,
            max_exp_avg_sqs=[],
            state_steps=counted,
            lr=rate,
            beta1=betas[0],
            beta2=betas[1],
            weight_decay=0.0,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )


@lru_cache(maxsize=1024)
def _adam_pieces(
    sizes: tuple[int, ...],
    taken: tuple[int, ...],
    factors: tuple[float, ...],
    runs: tuple[int, ...],
) -> list[tuple[int, float, int]]:
    """Pieces of the flat buffer, in order: length, factor of the rate, and index of the run.

    A piece has one parameter of one run of models; the last one, also the padding. Where all models
    are one run, neighbouring parameters with the same factor are one piece.
    """
    pieces = []
    for factor, size, whole in zip(factors, sizes, taken, strict=True):
        lengths = [size * length for length in runs]
        lengths[-1] += whole - sum(lengths)
        pieces += [(length, factor, run) for run, length in enumerate(lengths)]
    if len(runs) == 1:
        merged = groupby(pieces, key=itemgetter(1))
        return [(sum(length for length, _, _ in group), factor, 0) for factor, group in merged]
    return pieces
