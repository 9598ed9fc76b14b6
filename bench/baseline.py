"""The training loop a user would write by hand: a peer for benchmarks, an oracle for tests.

Ordinary torch modules, losses and optimizers, one model at a time, in the order of GANomaly's
published code. Nothing of `pkd`'s layers or losses is used, so that agreement means something.

Where a choice was free, it is the faster one, so that nobody's speed is inflated: images lie on the
device as floats, indexed without a DataLoader; the real features are constants of L_g from the
start; no loss is read back.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pkd.training.structures import Structure

NORMS = {
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    # Statistics of the batch always, as in GANomaly, whose published code never leaves training
    # mode. At batch size 1 this is instance normalisation by another route.
    "batch": lambda channels: nn.BatchNorm2d(channels, track_running_stats=False),
}


def encoder(
    channels: int,
    widths: tuple[int, int, int],
    outputs: int,
    norm: str = "instance",
    norm_first: bool = True,
) -> nn.Sequential:
    """(N, channels, 32, 32) to (N, outputs, 1, 1); an encoder, or a discriminator."""
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
    """(N, latent, 1, 1) to (N, channels, 32, 32) in [-1, 1]."""
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
    """Of a generator: z1 = G_E(x), xh = G_D(z1), z2 = G_R(xh)."""

    z1: Tensor
    xh: Tensor
    z2: Tensor


class PlainGenerator(nn.Module):
    """Encoder, decoder, re-encoder."""

    def __init__(self, channels, widths, latent, norm, norm_first):
        super().__init__()
        self.encoder = encoder(channels, widths, latent, norm, norm_first)
        self.decoder = decoder(channels, widths, latent, norm)
        self.reencoder = encoder(channels, widths, latent, norm, norm_first)

    def forward(self, x: Tensor) -> Outputs:
        z1 = self.encoder(x)
        xh = self.decoder(z1)
        return Outputs(z1, xh, self.reencoder(xh))


class PlainDiscriminator(nn.Module):
    """Logit, and the feature map before the classifier."""

    def __init__(self, channels, widths, norm, norm_first):
        super().__init__()
        *features, classifier = encoder(channels, widths, 1, norm, norm_first)
        self.features, self.classifier = nn.Sequential(*features), classifier

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
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
    """One member's parameters of a stacked network, whose parameters are `stack` equal blocks.

    Views, in the order in which a plain network of the same form has its own.
    """
    return [
        p.detach().view(stack, p.shape[0] // stack, *p.shape[1:])[member]
        for p in stacked.parameters()
    ]


@torch.no_grad()
def copy_parameters(plain: nn.Module, values: Iterable[Tensor]) -> None:
    """Copy `member_parameters` into a plain network; a shape that differs raises."""
    for p, value in zip(plain.parameters(), values, strict=True):
        if p.shape != value.shape:
            raise ValueError(f"a parameter of shape {tuple(p.shape)} got {tuple(value.shape)}")
        p.copy_(value)


def largest_difference(plain: nn.Module, values: Iterable[Tensor]) -> float:
    """Largest absolute difference between a plain network's parameters and `values`."""
    pairs = zip(plain.parameters(), values, strict=True)
    return max((p.detach() - value).abs().max().item() for p, value in pairs)


Judge = Callable[[Tensor], tuple[Tensor, Tensor]]  # what a discriminator does


def l1(a: Tensor, b: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return F.l1_loss(a, b)
    return (a - b).flatten(1).norm(p=1, dim=1).mean()


def l2(a: Tensor, b: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return F.mse_loss(a, b)
    return (a - b).flatten(1).norm(p=2, dim=1).mean()


class PlainNetwork:
    """A GAN with its two optimizers, and one training step of both.

    Args:
        own: whether L_g and L_d are on; without them the discriminator is not run.
        weights: of con, enc, adv, k1, kx, k2 (Eqs. 5 and 6).
        adam: makes an optimizer of parameters, lr and betas.
    """

    def __init__(
        self,
        gan: PlainGAN,
        own: bool,
        lr: float,
        betas: tuple[float, float],
        weights: tuple[float, ...],
        reduction: str,
        adam: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    ):
        self.gan, self.own, self.weights, self.reduction = gan, own, weights, reduction
        self.optimizer_g = adam(gan.generator.parameters(), lr=lr, betas=betas)
        self.optimizer_d = adam(gan.discriminator.parameters(), lr=lr, betas=betas)

    def step(self, x: Tensor, target: Outputs | None) -> Outputs:
        """Update on images x (N, C, 32, 32), distilling from `target`; returns what G made of x.

        D's loss is that of its weights before the step, on the fakes of G before its update.
        """
        made = self.gan.generator(x)
        self.optimizer_g.zero_grad()
        self.generator_loss(x, made, target).backward()
        self.optimizer_g.step()
        if self.own:
            self.optimizer_d.zero_grad()  # also of what the adversarial loss has left there
            self.discriminator_loss(x, made.xh.detach()).backward()
            self.optimizer_d.step()
        return Outputs(*(t.detach() for t in made))

    def discriminator_loss(self, x: Tensor, fake: Tensor, judge: Judge | None = None) -> Tensor:
        """L_d = BCE(D(x), 1) + BCE(D(xh), 0); `judge` takes D's place."""
        judge = judge or self.gan.discriminator
        real_logit, _ = judge(x)
        fake_logit, _ = judge(fake)
        real = F.binary_cross_entropy_with_logits(real_logit, torch.ones_like(real_logit))
        return real + F.binary_cross_entropy_with_logits(fake_logit, torch.zeros_like(fake_logit))

    def generator_loss(
        self, x: Tensor, made: Outputs, target: Outputs | None, judge: Judge | None = None
    ) -> Tensor:
        """L_g, K_l, or both; `judge` takes D's place."""
        (z1, xh, z2), reduction = made, self.reduction
        con, enc, adv, k1, kx, k2 = self.weights
        judge = judge or self.gan.discriminator
        loss = 0.0
        if self.own:
            _, f_real = judge(x)
            _, f_fake = judge(xh)
            loss = loss + con * l1(xh, x, reduction)
            loss = loss + enc * l2(z1, z2, reduction)
            loss = loss + adv * l2(f_fake, f_real.detach(), reduction)
        if target is not None:
            loss = loss + k1 * l2(z1, target.z1, reduction)
            loss = loss + kx * l1(xh, target.xh, reduction)
            loss = loss + k2 * l2(z2, target.z2, reduction)
        return loss


class PlainLoop:
    """Trains one model with one structure; a frozen teacher is run in every step.

    Args:
        teacher: may be None where nothing needs one.
        student: may be None where only the teacher is trained.
        network: what trains each of them: `PlainNetwork`, or a peer of its form.
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
        self.learning_teacher = network(teacher, True, *options) if structure.teacher else None
        trains = "student" in structure.trained
        self.student = network(student, structure.student, *options) if trains else None

    def step(self, x: Tensor, target: Outputs | None = None) -> None:
        """One update of every trained network on images x (N, C, 32, 32) in [-1, 1].

        Args:
            target: a frozen teacher's outputs where they are known; else it is run.
        """
        if self.learning_teacher is not None:
            target = self.learning_teacher.step(x, None)
        elif self.structure.distill and target is None:
            with torch.no_grad():
                target = self.teacher.generator(x)
        if self.student is not None:
            self.student.step(x, target if self.structure.distill else None)
