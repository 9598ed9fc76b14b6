"""Forward and backward pass of GANs, whose independent layers share launches.

    forward    G_E(x)  beside  D(x)          backward   G_D and G_R mirror the forward pass; beside
               G_D(z1)                                  G_R: D for its own parameters, on real and
               G_R(xh) beside  D(xh)                    fake images, and D from f_fake to xh

Several GANs run side by side. D's maps of real and fake images are two halves of one tensor, as if
D had run once on 2N images. The gradients of xh from G_R and from f_fake are added by the programs
that carry them into G_D.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from pkd_kernels.conv.autograd import (
    for_autograd,
    in_threes,
    main_grads,
    needs_backward,
    parameters_of,
    save_for_backward,
    saved_outputs,
)
from pkd_kernels.conv.backward import Problem, launch_gradients
from pkd_kernels.conv.forward import LayerOutput, LayerProblem, empty_output, launch_layers
from pkd_kernels.conv.schedule import (
    Buffers,
    ChainGradients,
    Gradients,
    Requested,
    Schedule,
    backward_chain,
    forward_chain,
    lockstep,
    run,
)
from pkd_kernels.operators import once_differentiable
from pkd_kernels.reference import GANLayers, GANOutput

OUTPUTS = len(GANOutput._fields)
T = TypeVar("T")


class _Chains(NamedTuple):
    """The layers of a GAN after their forward pass; D's outputs are those of 2N images."""

    encoder: list[LayerOutput]
    decoder: list[LayerOutput]
    reencoder: list[LayerOutput]
    discriminator: list[LayerOutput]

    def gan_output(self, images: int) -> GANOutput:
        """The outputs; detached, because autograd refuses changes of views from a function."""
        generator = [chain[-1].y for chain in self[:3]]
        if not self.discriminator:
            return GANOutput(*generator)
        *_, features, logits = self.discriminator
        halves = [half for output in (logits, features) for half in output.y.split(images)]
        return GANOutput(*generator, *(half.detach() for half in halves))


class _OutputGradients(NamedTuple):
    """Gradients of the fields of a GANOutput; None for none."""

    z1: Tensor | None
    xh: Tensor | None
    z2: Tensor | None
    logits_real: Tensor | None
    logits_fake: Tensor | None
    f_real: Tensor | None  # a constant: always None
    f_fake: Tensor | None


def _forward(x: Tensor, gan: GANLayers, stack: int, save: bool) -> Schedule[LayerProblem, _Chains]:
    """Forward pass of one GAN."""
    like, both = x, []
    for layer in gan.discriminator:
        images = 2 * len(x)
        both.append(empty_output(like, layer, stack, save=save, first=False, images=images))
        like = both[-1].y[: len(x)]
    real, fake = ([output.rows(rows) for output in both] for rows in _halves(len(x)))
    d = gan.discriminator
    encoder, _ = yield from lockstep(
        forward_chain(x, gan.encoder, stack, save=save),
        forward_chain(x, d, stack, save=save, into=real),
    )
    decoder = yield from forward_chain(encoder[-1].y, gan.decoder, stack, save=save)
    xh = decoder[-1].y
    reencoder, _ = yield from lockstep(
        forward_chain(xh, gan.reencoder, stack, save=save),
        forward_chain(xh, d, stack, save=save, into=fake),
    )
    return _Chains(encoder, decoder, reencoder, both)


def _halves(images: int) -> tuple[slice, slice]:
    """Rows of the real and of the fake images."""
    return slice(images), slice(images, 2 * images)


def _split(values: Sequence[T], parts: Iterable[Sequence[Any]]) -> list[list[T]]:
    """Values, divided into parts of these lengths."""
    ends = accumulate(map(len, parts), initial=0)
    return [list(values[begin:end]) for begin, end in pairwise(ends)]


def _backward(
    x: Tensor,
    chains: _Chains,
    grads: _OutputGradients,
    needed: Sequence[tuple[bool, ...]],
    buffers: Buffers,
    stack: int,
) -> Schedule[Problem, Gradients]:
    """Gradients of one GAN's parameters.

    Args:
        x: images.
        chains: its layers after the forward pass.
        grads: gradients of its outputs; None where there is none.
        needed: whether weight, gamma and beta of each layer need a gradient.
        buffers: where it is written; None allocates.
        stack: M.
    """
    xh, tap = chains.decoder[-1].y, len(chains.discriminator) - 2
    e, d, r, own = (
        Requested(False, *of_chain)
        for of_chain in zip(_split(needed, chains), _split(buffers, chains), strict=True)
    )
    d = d._replace(x=e.any)
    r = r._replace(x=d.any)
    constant = Requested(r.x, [(False,) * 3] * (tap + 1), [(None,) * 3] * (tap + 1))
    _, fake = _halves(len(x))
    through = [output.rows(fake) for output in chains.discriminator[: tap + 1]]
    logits = _concatenated(grads.logits_real, grads.logits_fake)
    of_r, of_f, of_d = yield from lockstep(
        backward_chain((xh,), chains.reencoder, _last(chains.reencoder, grads.z2), r, stack),
        backward_chain((xh,), through, _last(through, grads.f_fake), constant, stack),
        backward_chain(
            (x, xh), chains.discriminator, _last(chains.discriminator, logits), own, stack
        ),
    )
    branches: list[ChainGradients] = [of_r, of_f, of_d]
    of_g = yield from backward_chain(
        (chains.encoder[-1].y,),
        chains.decoder,
        _last(chains.decoder, grads.xh),
        d,
        stack,
        [reader for branch in branches for reader in branch.readers],
        [problem for branch in branches for problem in branch.waiting],
    )
    of_e = yield from backward_chain(
        (x,), chains.encoder, _last(chains.encoder, grads.z1), e, stack, of_g.readers, of_g.waiting
    )
    if of_e.waiting:
        yield of_e.waiting
    return [*of_e.parameters, *of_g.parameters, *of_r.parameters, *of_d.parameters]


def _last(chain: Sequence[LayerOutput], grad: Tensor | None) -> dict[int, Tensor]:
    """The gradient of a chain's last output, by index; empty where there is none."""
    return {} if grad is None else {len(chain) - 1: grad}


def _concatenated(real: Tensor | None, fake: Tensor | None) -> Tensor | None:
    """Both as one batch; without a copy where they are adjacent halves of one tensor."""
    if real is None or fake is None:
        given = real if fake is None else fake
        if given is None:
            return None
        real, fake = (torch.zeros_like(given) if t is None else t for t in (real, fake))
    adjacent = fake.data_ptr() == real.data_ptr() + real.nbytes
    same = real.untyped_storage().data_ptr() == fake.untyped_storage().data_ptr()
    if adjacent and same and real.is_contiguous() and fake.is_contiguous():
        # The batch stride of a single row is arbitrary: view both as one run of memory.
        return real.as_strided((2 * real.numel(),), (1,)).view(2 * len(real), *real.shape[1:])
    return torch.cat([real, fake])


class _GANPass(torch.autograd.Function):
    """GANs that are differentiated in their parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gans: Sequence[GANLayers],
        stack: int,
        save: bool,
        *parameters: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        x = x.contiguous()
        schedule = lockstep(*(_forward(x, gan, stack, save) for gan in gans))
        chains = run(schedule, launch_layers, stack)
        outputs = [chains_of_gan.gan_output(len(x)) for chains_of_gan in chains]
        ctx.mark_non_differentiable(*(o.f_real for o in outputs if o.f_real is not None))
        if save:
            save_for_backward(ctx, x, [o for gan in chains for chain in gan for o in chain])
        ctx.gans, ctx.stack, ctx.buffers = gans, stack, main_grads(parameters)
        ctx.set_materialize_grads(False)
        return tuple(t for output in outputs for t in output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, outputs = saved_outputs(ctx)
        layers = [gan.layers for gan in ctx.gans]
        of_gans = zip(
            ctx.gans,
            _split(outputs, layers),
            _split(grads, [GANOutput._fields] * len(layers)),
            _split(in_threes(ctx.needs_input_grad[4:]), layers),
            _split(ctx.buffers, layers),
            strict=True,
        )
        schedule = lockstep(
            *(
                _backward(
                    x,
                    _Chains(*_split(gan_outputs, gan)),
                    _OutputGradients(*gan_grads),
                    needed,
                    buffers,
                    ctx.stack,
                )
                for gan, gan_outputs, gan_grads, needed, buffers in of_gans
            )
        )
        results = run(schedule, launch_gradients, ctx.stack)
        parameter_grads = [grad for gradients in results for grad in gradients]
        return None, None, None, None, *for_autograd(parameter_grads, ctx.buffers)


def gan_pass(x: Tensor, gans: Sequence[GANLayers], *, stack: int = 1) -> tuple[GANOutput, ...]:
    """`reference.gan_pass`; layers of equal depth share a launch, forward and backward.

    For `main_grad` see `conv_chain`. Derivatives with respect to x are not computed.

    Raises:
        ValueError: the kernels do not support a layer (`layer_geometry`), or models share images.
    """
    parameters = parameters_of([layer for gan in gans for layer in gan.layers])
    save = needs_backward(*parameters)
    outputs = _GANPass.apply(x.detach(), tuple(gans), stack, save, *parameters)
    return tuple(GANOutput(*outputs[i : i + OUTPUTS]) for i in range(0, len(outputs), OUTPUTS))
