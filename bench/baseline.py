"""The plain training loop: the baseline of the benchmarks and the reference of the tests.

It uses ordinary torch modules, losses and optimizers, one model at a time, in the order of
GANomaly's published code. It shares no layer and no loss with `pkd`, so the two are independent.

Free choices are made in favour of speed, so that the baseline is not slower than necessary: images
are floats on the device, indexed without a DataLoader; the features of real images are constants in
L_g; losses are never read back.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pkd.training.structures import Structure

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    # Always with batch statistics: GANomaly's published code never leaves training mode. At batch
    # size 1 this equals instance normalisation.
    "batch": lambda channels: nn.BatchNorm2d(channels, track_running_stats=False),
}


def encoder(
    channels: int,
    widths: tuple[int, int, int],
    outputs: int,
    norm: str = "instance",
    norm_first: bool = True,
) -> nn.Sequential:
    """Return a network from (N, channels, 32, 32) to (N, outputs, 1, 1).

    It serves as encoder and, with one output, as discriminator.
    """
    a, b, c = widths
    normalise = NORMS[norm]
    return nn.Sequential(
        nn.Conv2d(channels, a, 4, 2, 1, bias=False),
        *([normalise(a)] if norm_first else []),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(a, b, 4, 2, 1, bias=False),
        normalise(b),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(b, c, 4, 2, 1, bias=False),
        normalise(c),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(c, outputs, 4, 1, 0, bias=False),
    )


def decoder(
    channels: int, widths: tuple[int, int, int], latent: int, norm: str = "instance"
) -> nn.Sequential:
    """Return a network from (N, latent, 1, 1) to (N, channels, 32, 32) in [-1, 1]."""
    a, b, c = widths
    normalise = NORMS[norm]
    return nn.Sequential(
        nn.ConvTranspose2d(latent, c, 4, 1, 0, bias=False),
        normalise(c),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(c, b, 4, 2, 1, bias=False),
        normalise(b),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(b, a, 4, 2, 1, bias=False),
        normalise(a),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(a, channels, 4, 2, 1, bias=False),
        nn.Tanh(),
    )


class Outputs(NamedTuple):
    """Outputs of a generator: z1 = G_E(x), xh = G_D(z1), z2 = G_R(xh)."""

    z1: Tensor
    xh: Tensor
    z2: Tensor


class PlainGenerator(nn.Module):
    """Encoder, decoder and second encoder."""

    def __init__(
        self,
        channels: int,
        widths: tuple[int, int, int],
        latent: int,
        norm: str,
        norm_first: bool,
    ):
        super().__init__()
        self.encoder = encoder(channels, widths, latent, norm, norm_first)
        self.decoder = decoder(channels, widths, latent, norm)
        self.reencoder = encoder(channels, widths, latent, norm, norm_first)

    def forward(self, x: Tensor) -> Outputs:
        """Reconstruct images (N, C, 32, 32) in [-1, 1]."""
        z1 = self.encoder(x)
        xh = self.decoder(z1)
        return Outputs(z1, xh, self.reencoder(xh))


class PlainDiscriminator(nn.Module):
    """Discriminator: feature layers and a classifier convolution."""

    def __init__(self, channels: int, widths: tuple[int, int, int], norm: str, norm_first: bool):
        super().__init__()
        *features, classifier = encoder(channels, widths, 1, norm, norm_first)
        self.features, self.classifier = nn.Sequential(*features), classifier

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N,) and the feature maps before the classifier."""
        features = self.features(x)
        return self.classifier(features).flatten(), features


class PlainGAN(nn.Module):
    """Generator and discriminator of one model; `norm` is a key of `NORMS`."""

    def __init__(
        self,
        channels: int,
        widths: tuple[int, int, int],
        latent: int = 256,
        norm: str = "instance",
        norm_first: bool = True,
    ):
        super().__init__()
        self.generator = PlainGenerator(channels, widths, latent, norm, norm_first)
        self.discriminator = PlainDiscriminator(channels, widths, norm, norm_first)


def member_parameters(stacked: nn.Module, member: int, stack: int) -> list[Tensor]:
    """Return views of one member's parameters in a stacked network.

    A parameter of a stacked network consists of `stack` equal blocks, one for each member. The
    order is that of a plain network of the same architecture.
    """
    return [
        p.detach().view(stack, p.shape[0] // stack, *p.shape[1:])[member]
        for p in stacked.parameters()
    ]


@torch.no_grad()
def copy_parameters(plain: nn.Module, values: Iterable[Tensor]) -> None:
    """Copy parameters, see `member_parameters`, into a plain network.

    Raises:
        ValueError: a shape differs.
    """
    for p, value in zip(plain.parameters(), values, strict=True):
        if p.shape != value.shape:
            raise ValueError(
                f"cannot copy shape {tuple(value.shape)} into a parameter of shape {tuple(p.shape)}"
            )
        p.copy_(value)


def largest_difference(plain: nn.Module, values: Iterable[Tensor]) -> float:
    """Return the largest absolute difference between a network's parameters and `values`."""
    pairs = zip(plain.parameters(), values, strict=True)
    return max((p.detach() - value).abs().max().item() for p, value in pairs)


Discriminator = Callable[[Tensor], tuple[Tensor, Tensor]]  # images to logits and features


def l1(a: Tensor, b: Tensor, reduction: str) -> Tensor:
    """Mean absolute error ("mean"), or the mean of the L1 norms of the images ("norm")."""
    if reduction == "mean":
        return F.l1_loss(a, b)
    return (a - b).flatten(1).norm(p=1, dim=1).mean()


def l2(a: Tensor, b: Tensor, reduction: str) -> Tensor:
    """Mean squared error ("mean"), or the mean of the L2 norms of the images ("norm")."""
    if reduction == "mean":
        return F.mse_loss(a, b)
    return (a - b).flatten(1).norm(p=2, dim=1).mean()


class PlainNetwork:
    """A GAN with its two optimizers and one training step.

    Args:
        gan: the networks.
        adversarial: train with L_g and L_d; without them the discriminator does not run.
        lr: learning rate.
        betas: decay rates of Adam.
        weights: weights of con, enc, adv, k1, kx, k2 (Eqs. 5 and 6).
        reduction: "mean" or "norm".
        adam: function of parameters, lr and betas that returns an optimizer.
    """

    def __init__(
        self,
        gan: PlainGAN,
        adversarial: bool,
        lr: float,
        betas: tuple[float, float],
        weights: tuple[float, ...],
        reduction: str,
        adam: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    ):
        self.gan, self.adversarial = gan, adversarial
        self.weights, self.reduction = weights, reduction
        self.optimizer_g = adam(gan.generator.parameters(), lr=lr, betas=betas)
        self.optimizer_d = adam(gan.discriminator.parameters(), lr=lr, betas=betas)

    def step(self, x: Tensor, target: Outputs | None) -> Outputs:
        """Update both networks on images x (N, C, 32, 32).

        D is trained on the reconstructions that G computed before its update.

        Args:
            x: images in [-1, 1].
            target: outputs of the teacher on x, to distil from; or None.

        Returns:
            The outputs of G before its update, detached.
        """
        outputs = self.gan.generator(x)
        self.optimizer_g.zero_grad()
        self.generator_loss(x, outputs, target).backward()
        self.optimizer_g.step()
        if self.adversarial:
            self.optimizer_d.zero_grad()  # S_adv has left gradients of G's loss in D
            self.discriminator_loss(x, outputs.xh.detach()).backward()
            self.optimizer_d.step()
        return Outputs(*(t.detach() for t in outputs))

    def discriminator_loss(
        self, x: Tensor, fake: Tensor, discriminator: Discriminator | None = None
    ) -> Tensor:
        """L_d = BCE(D(x), 1) + BCE(D(xh), 0); `discriminator` replaces D."""
        # Not `or`: the truth value of a function is a graph break in torch 2.11.
        discriminator = self.gan.discriminator if discriminator is None else discriminator
        real_logit, _ = discriminator(x)
        fake_logit, _ = discriminator(fake)
        real = F.binary_cross_entropy_with_logits(real_logit, torch.ones_like(real_logit))
        return real + F.binary_cross_entropy_with_logits(fake_logit, torch.zeros_like(fake_logit))

    def generator_loss(
        self,
        x: Tensor,
        outputs: Outputs,
        target: Outputs | None,
        discriminator: Discriminator | None = None,
    ) -> Tensor:
        """L_g, K_l, or their sum; `discriminator` replaces D."""
        (z1, xh, z2), reduction = outputs, self.reduction
        con, enc, adv, k1, kx, k2 = self.weights
        discriminator = self.gan.discriminator if discriminator is None else discriminator
        loss = 0.0  # not a tensor: adding one would cost the baseline a launch
        if self.adversarial:
            _, f_real = discriminator(x)
            _, f_fake = discriminator(xh)
            loss = loss + con * l1(xh, x, reduction)
            loss = loss + enc * l2(z1, z2, reduction)
            loss = loss + adv * l2(f_fake, f_real.detach(), reduction)
        if target is not None:
            loss = loss + k1 * l2(z1, target.z1, reduction)
            loss = loss + kx * l1(xh, target.xh, reduction)
            loss = loss + k2 * l2(z2, target.z2, reduction)
        return loss


class PlainLoop:
    """Train one model with one structure; a frozen teacher runs in every step.

    Args:
        structure: the losses that are on.
        teacher: None if the structure uses no teacher.
        student: None if the structure trains the teacher alone.
        lr: learning rate.
        betas: decay rates of Adam.
        weights: weights of con, enc, adv, k1, kx, k2.
        reduction: "mean" or "norm".
        network: trainer of one GAN, with the signature of `PlainNetwork`.
    """

    def __init__(
        self,
        structure: Structure,
        teacher: PlainGAN | None,
        student: PlainGAN | None,
        *,
        lr: float = 0.002,
        betas: tuple[float, float] = (0.5, 0.999),
        weights: tuple[float, ...] = (10.0, 1.0, 1.0, 1.0, 1.0, 1.0),
        reduction: str = "mean",
        network: Callable[..., PlainNetwork] = PlainNetwork,
    ):
        options = (lr, betas, weights, reduction)
        self.structure, self.teacher = structure, teacher
        self.trained_teacher = network(teacher, True, *options) if structure.teacher else None
        trains_student = "student" in structure.trained
        self.student = network(student, structure.student, *options) if trains_student else None

    def step(self, x: Tensor, target: Outputs | None = None) -> None:
        """Update every trained network once.

        Args:
            x: images (N, C, 32, 32) in [-1, 1].
            target: outputs of a frozen teacher on x if they are cached; by default it runs.
        """
        if self.trained_teacher is not None:
            target = self.trained_teacher.step(x, None)
        elif self.structure.distill and target is None:
            with torch.no_grad():
                target = self.teacher.generator(x)
        if self.student is not None:
            self.student.step(x, target if self.structure.distill else None)
