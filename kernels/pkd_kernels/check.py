"""Compare every op with its definition in float64 on this machine, and time it.

Each row is an op in one type: where it ran, the largest error divided by the largest expected
value, and the time of a call with its gradients. The exit code is 1 if an error exceeds its limit.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

import pkd_kernels
from pkd_kernels import reference
from pkd_kernels.dispatch import uses_triton
from pkd_kernels.reference import ConvLayer, GANLayers

# Type -> largest error of values that are rounded once or twice.
LIMITS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
WIDE = (torch.float64, torch.float32)
REPEATS, CALLS = 5, 10
LATENT = 256
BETAS = (0.5, 0.999)


class Case(NamedTuple):
    """An op with inputs.

    Attributes:
        name: of the op, and of the sizes.
        run: calls an op of a module, `pkd_kernels` or its definitions, with the inputs; returns all
            results, gradients included.
        inputs: in float64 or an integer type.
        dtypes: types to check.
        roundings: multiplies the limits: values that pass many layers are rounded in each.
    """

    name: str
    run: Callable[[Any, Sequence[Tensor]], Sequence[Tensor]]
    inputs: Sequence[Tensor]
    dtypes: Sequence[torch.dtype] = tuple(LIMITS)
    roundings: int = 1


def _normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in tensors]


def _gradients(outputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Outputs, and gradients of the leaves for upstream gradients from -1 to 2."""
    chosen = [y for y in outputs if y.requires_grad]
    upstream = [torch.linspace(-1, 2, y.numel() + 1)[1:].view(y.shape).to(y) for y in chosen]
    grads = torch.autograd.grad(chosen, leaves, upstream, allow_unused=True)
    return [*(y.detach() for y in outputs), *(g for g in grads if g is not None)]


def _losses(ops: Any, inputs: Sequence[Tensor], reduction: str, stack: int) -> Sequence[Tensor]:
    x, f_real, t1, tx, t2, *leaves = inputs
    xh, z1, z2, f_fake, real, fake = leaves = _leaves(leaves)
    weights = torch.tensor([10.0, 1, 1, 1, 1, 1], device=x.device, dtype=torch.float32)
    options = {"teacher": (t1, tx, t2), "weights": weights, "reduction": reduction, "stack": stack}
    arguments = (x, xh, z1, z2, f_real, f_fake)
    outputs = [
        *ops.gan_losses(*arguments, real, fake, **options),
        *ops.generator_loss(*arguments, **options),
        ops.discriminator_loss(real, fake, stack=stack),
    ]
    return _gradients(outputs, leaves)


def _loss_case(batch: int, stack: int, reduction: str) -> Case:
    images, features = (batch, stack * 3072), (batch, stack * 1024)
    latents, logits = (batch, stack * LATENT), (batch, stack)
    shapes = [images, features, latents, images, latents, images, latents, latents, features]
    inputs = [_normal(*shape, seed=i) for i, shape in enumerate([*shapes, logits, logits])]
    name = f"losses {reduction!r}, N={batch} M={stack}"
    return Case(name, partial(_losses, reduction=reduction, stack=stack), inputs)


def _novelty(ops: Any, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    z1, z2, x, xh = inputs
    return [ops.novelty_score(z1, z2, stack=3), ops.novelty_parts(z1, z2, x, xh, stack=3)]


def _gather(ops: Any, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    rows, latents, first, order, step = inputs
    return ops.gather([(rows, first), (latents, first)], order, step)


def _adam(ops: Any, inputs: Sequence[Tensor], sizes: tuple[int, ...]) -> Sequence[Tensor]:
    param, grad, avg, sq = (t.clone() for t in inputs)
    stack = len(param) // sum(sizes)
    wide = reference.accumulator(param)
    step, lr = (torch.full((stack,), v, device=param.device) for v in (3.0, 0.002))
    models = step, lr, torch.ones_like(lr).bool(), lr.new_empty(2, stack, dtype=wide)
    ops.adam_prepare(*models, betas=BETAS)
    ops.adam_step(param, grad, avg, sq.square_(), *models, sizes=sizes, betas=BETAS, eps=1e-8)
    return [param, avg, sq]


def _layer(ops: Any, inputs: Sequence[Tensor], options: dict[str, Any]) -> Sequence[Tensor]:
    leaves = _leaves(inputs)
    return _gradients([ops.conv_norm_act(*leaves, **options)], leaves)


def _layer_case(name: str, side: int, transposed: bool, activation: str) -> Case:
    stride = 1 if side == 1 else 2
    options: dict[str, Any] = {"stride": stride, "padding": stride - 1, "transposed": transposed}
    options |= {"activation": activation, "stack": 2}
    inputs = [_normal(3, 2 * 16, side, side), _normal(2 * 16, 16, 4, 4) / 16]
    inputs += [_normal(2 * 16) / 4 + 1, _normal(2 * 16, seed=1)]
    return Case(f"layer {name}", partial(_layer, options=options), inputs, roundings=3)


def _gan(ops: Any, inputs: Sequence[Tensor], options: GANLayers, stack: int) -> Sequence[Tensor]:
    x, *parameters = inputs
    parameters = _leaves(parameters)
    values = iter(parameters)
    chains = [[layer.map(lambda _: next(values)) for layer in chain] for chain in options]
    (output,) = ops.gan_pass(x, [GANLayers(*chains)], stack=stack)
    return _gradients(list(output), parameters)


def _gan_case(widths: tuple[int, int, int], stack: int) -> Case:
    def layer(inputs: int, outputs: int, norm: bool, *options: Any) -> ConvLayer:
        first, second = (inputs, outputs) if options[2] else (outputs, inputs)
        weight = _normal(stack * first, second, 4, 4) / (4 * inputs**0.5)
        gamma, beta = (_normal(stack * outputs, seed=i) / 4 + 1 - i for i in range(2))
        return ConvLayer(weight, *((gamma, beta) if norm else (None, None)), *options)

    def encoder(outputs: int) -> list[ConvLayer]:
        down = [layer(*w, True, 2, 1, False, "leaky_relu") for w in pairwise((3, *widths))]
        return [*down, layer(widths[-1], outputs, False, 1, 0, False, "none")]

    root = layer(LATENT, widths[-1], True, 1, 0, True, "relu")
    up = [layer(*w, True, 2, 1, True, "relu") for w in pairwise(widths[::-1])]
    decoder = [root, *up, layer(widths[0], 3, False, 2, 1, True, "tanh")]
    gan = GANLayers(encoder(LATENT), decoder, encoder(LATENT), encoder(1))
    parameters = [p for one in gan.layers for p in one[:3] if p is not None]
    name = f"gan_pass {'-'.join(map(str, widths))}, N=1 M={stack}"
    run = partial(_gan, options=gan, stack=stack)
    return Case(name, run, [_normal(1, stack * 3, 32, 32), *parameters], WIDE, roundings=30)


def cases() -> list[Case]:
    """All ops of a training step and of scoring, in sizes that they have there."""
    pixels = _normal(12, 3, 32, 32).mul(60).add(128).clamp(0, 255).byte()
    indices = torch.tensor([0, 4]), torch.tensor([[[1, 2]], [[5, 7]]]), torch.tensor([1])
    sizes = (64 * 256 * 16, 64, 3)
    latents, images = [_normal(5, 3 * LATENT, seed=i) for i in range(2)], (5, 9, 32, 32)
    return [
        _loss_case(1, 1, "mean"),
        _loss_case(3, 30, "norm"),
        Case("novelty", _novelty, [*latents, *(_normal(*images, seed=i) for i in range(2))]),
        Case("gather", _gather, [pixels, _normal(12, LATENT), *indices]),
        Case(
            "adam",
            partial(_adam, sizes=sizes),
            [_normal(3 * sum(sizes), seed=i) for i in range(4)],
        ),
        # Smooth activations: near a kink, 16 bits decide on another gradient than 64.
        _layer_case("16 x 16 to 8 x 8", 16, False, "tanh"),
        _layer_case("8 x 8 to 16 x 16", 8, True, "tanh"),
        _layer_case("1 x 1 to 4 x 4", 1, True, "tanh"),
        _gan_case((1, 2, 4), 1),
        _gan_case((8, 16, 64), 30),
    ]


class Row(NamedTuple):
    """Result of one case in one type.

    Attributes:
        case: its name.
        dtype: the type.
        path: "kernel" or "definition".
        error: largest error, divided by the largest expected value of its tensor.
        limit: of the error.
        seconds: of a call with its gradients; a median.
    """

    case: str
    dtype: torch.dtype
    path: str
    error: float
    limit: float
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the error is within its limit."""
        return self.error <= self.limit  # False for NaN


def checked(chosen: Sequence[Case], device: torch.device) -> Iterator[Row]:
    """Check cases on a device, in all their types."""
    for case in chosen:
        for dtype in case.dtypes:
            inputs = [_cast(t, dtype).to(device) for t in case.inputs]
            call = partial(case.run, pkd_kernels, inputs)
            with _images_in(dtype):
                results, seconds = call(), _seconds(call, device)
            with _images_in(torch.float64):
                expected = case.run(reference, [_cast(t, torch.float64) for t in inputs])
            path = "kernel" if uses_triton(inputs[0]) else "definition"
            limit = LIMITS[dtype] * case.roundings
            yield Row(case.name, dtype, path, _largest_error(results, expected), limit, seconds)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


@contextmanager
def _images_in(dtype: torch.dtype) -> Iterator[None]:
    """Context in which images are gathered in a type: PyTorch's default type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _largest_error(results: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """NaN if any result is NaN."""
    errors = [
        (a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30)
        for a, b in zip(results, expected, strict=True)
    ]
    return torch.stack(errors).max().item()


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Median time of a call, its launches by the host included."""
    times, calls = [], CALLS if device.type == "cuda" else 1
    for _ in range(REPEATS):
        _synchronize(device)
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        _synchronize(device)
        times.append((time.perf_counter() - begin) / calls)
    return median(times)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if an error exceeds its limit."""
    parser = argparse.ArgumentParser(prog="python -m pkd_kernels.check", description=__doc__)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="default %(default)s")
    device = torch.device(parser.parse_args(arguments).device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, triton {_triton_version()}")
    print(f"{'op':32} {'type':9} {'path':11} {'error':>8} {'limit':>8} {'ms/call':>9}")
    failed = False
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        for row in checked(cases(), device):
            failed |= not row.passed
            print(
                f"{row.case:32} {str(row.dtype).removeprefix('torch.'):9} {row.path:11} "
                f"{row.error:8.1e} {row.limit:8.1e} {1e3 * row.seconds:9.3f}"
                + ("" if row.passed else "  FAILED"),
                flush=True,
            )
    return int(failed)


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "not installed"
    return triton.__version__


if __name__ == "__main__":
    sys.exit(main())
