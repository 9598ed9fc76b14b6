"""Variants of `PlainNetwork`: other implementations of one training step of a GAN."""

from collections.abc import Callable
from typing import Any

import torch
from pkd_kernels import FlatAdam, discriminator_loss, generator_loss
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from bench.baseline import Discriminator, Outputs, PlainGAN, PlainNetwork
from pkd.models.architecture import Architecture
from pkd.models.ganomaly import GAN

Gradients = dict[str, dict[str, Tensor]]  # by network and parameter name


def plain_gan(architecture: Architecture) -> PlainGAN:
    """Return a plain GAN with these channels and widths."""
    return PlainGAN(architecture.channels, architecture.widths, architecture.latent)


class FusedLosses(PlainNetwork):
    """The plain network with the losses of `pkd_kernels`."""

    def __init__(
        self,
        gan: PlainGAN,
        adversarial: bool,
        lr: float,
        betas: tuple[float, float],
        weights: tuple[float, ...],
        reduction: str,
    ):
        super().__init__(gan, adversarial, lr, betas, weights, reduction)
        device = next(gan.parameters()).device
        self.loss_weights = torch.tensor(weights, device=device)

    def discriminator_loss(
        self, x: Tensor, fake: Tensor, discriminator: Discriminator | None = None
    ) -> Tensor:
        """L_d in one launch."""
        discriminator = self.gan.discriminator if discriminator is None else discriminator
        logits = [discriminator(images)[0][:, None] for images in (x, fake)]
        return discriminator_loss(*logits).squeeze(0)

    def generator_loss(
        self,
        x: Tensor,
        outputs: Outputs,
        target: Outputs | None,
        discriminator: Discriminator | None = None,
    ) -> Tensor:
        """L_g, K_l, or their sum, in one launch."""
        discriminator = self.gan.discriminator if discriminator is None else discriminator
        f_real, f_fake = None, None
        if self.adversarial:
            (_, f_real), (_, f_fake) = (discriminator(images) for images in (x, outputs.xh))
            f_real = f_real.detach()
        total, _ = generator_loss(
            x if self.adversarial else None,
            outputs.xh,
            outputs.z1,
            outputs.z2,
            f_real,
            f_fake,
            teacher=target,
            weights=self.loss_weights,
            reduction=self.reduction,
        )
        return total.squeeze(0)


class FlatNetwork(FusedLosses):
    """Fused losses, and one flat Adam for generator and discriminator."""

    def __init__(
        self,
        gan: PlainGAN,
        adversarial: bool,
        lr: float,
        betas: tuple[float, float],
        weights: tuple[float, ...],
        reduction: str,
    ):
        super().__init__(gan, adversarial, lr, betas, weights, reduction)
        del self.optimizer_g, self.optimizer_d
        self.generator_params = list(gan.generator.parameters())
        self.discriminator_params = list(gan.discriminator.parameters()) if adversarial else []
        params = self.generator_params + self.discriminator_params
        self.optimizer = FlatAdam(params, lr=lr, betas=betas)

    def step(self, x: Tensor, target: Outputs | None) -> Outputs:
        """Update as `PlainNetwork` does."""
        outputs = self.gan.generator(x)
        d_loss = self.discriminator_loss(x, outputs.xh.detach()) if self.adversarial else None
        g_loss = self.generator_loss(x, outputs, target)
        grads = torch.autograd.grad(g_loss, self.generator_params)
        if d_loss is not None:
            grads += torch.autograd.grad(d_loss, self.discriminator_params)
        self.optimizer.set_grads(grads)
        self.optimizer.step()
        return Outputs(*(t.detach() for t in outputs))


class FunctionalNetwork(PlainNetwork):
    """All gradients of the plain network by one `torch.func.grad`, from one forward pass."""

    def __init__(self, gan: PlainGAN, adversarial: bool, *options: Any, **keywords: Any):
        super().__init__(gan, adversarial, *options, **keywords)
        networks = {"generator": gan.generator, "discriminator": gan.discriminator}
        self.params = {
            name: dict(network.named_parameters())
            for name, network in networks.items()
            if adversarial or name == "generator"
        }

    def discriminator(self, params: dict[str, Tensor]) -> Discriminator:
        """Return the discriminator with these parameters."""
        return lambda images: functional_call(self.gan.discriminator, params, (images,))

    def loss(self, params: Gradients, x: Tensor, target: Outputs | None) -> tuple[Tensor, Outputs]:
        """Return the loss of generator plus discriminator, and the generator's outputs.

        Each part has gradients in the parameters of its own network only.
        """
        outputs = Outputs(*functional_call(self.gan.generator, params["generator"], (x,)))
        if not self.adversarial:
            return self.generator_loss(x, outputs, target), outputs
        d_params = params["discriminator"]
        constant = self.discriminator({name: p.detach() for name, p in d_params.items()})
        d_loss = self.discriminator_loss(x, outputs.xh.detach(), self.discriminator(d_params))
        return self.generator_loss(x, outputs, target, constant) + d_loss, outputs

    def gradients(self, x: Tensor, target: Outputs | None) -> tuple[Gradients, Outputs]:
        """Return the gradients of `loss`, in the layout of `params`, and the outputs."""
        return grad(self.loss, has_aux=True)(self.params, x, target)

    def step(self, x: Tensor, target: Outputs | None) -> Outputs:
        """Update as `PlainNetwork` does."""
        # `grad` itself ignores no_grad. Without it the step would keep all intermediate results,
        # in order to differentiate the gradients again.
        with torch.no_grad():
            gradients, outputs = self.gradients(x, target)
        for network, params in self.params.items():
            for name, p in params.items():
                p.grad = gradients[network][name]
        self.optimizer_g.step()
        if self.adversarial:
            self.optimizer_d.step()
        return Outputs(*(t.detach() for t in outputs))


class VmapNetwork(FunctionalNetwork):
    """The gradients of M models at once, by `vmap` over parameters (M, ...).

    The parameters are views of those of a stack.
    """

    def __init__(
        self,
        gan: GAN,
        adversarial: bool,
        lr: float,
        betas: tuple[float, float],
        *options: Any,
        adam: Callable[..., torch.optim.Optimizer],
    ):
        template = plain_gan(gan.architecture).to(next(gan.parameters()).device)
        super().__init__(template, adversarial, lr, betas, *options)
        names = [name for name, _ in template.named_parameters()]
        stacked = {
            name: nn.Parameter(p.detach().view(gan.stack, -1, *p.shape[1:]))
            for name, p in zip(names, gan.parameters(), strict=True)
        }
        self.params = {
            network: {name: stacked[f"{network}.{name}"] for name in params}
            for network, params in self.params.items()
        }
        self.optimizer_g, self.optimizer_d = (
            adam([p for name, p in stacked.items() if name.startswith(network)], lr=lr, betas=betas)
            for network in ("generator", "discriminator")
        )

    def gradients(self, x: Tensor, target: Outputs | None) -> tuple[Gradients, Outputs]:
        """Return gradients and outputs for images x (M, C, 32, 32), one for each model."""
        images = x.unsqueeze(1)
        if target is not None:
            target = Outputs(*(t.unsqueeze(1) for t in target))
        gradients_of_models = vmap(
            grad(self.loss, has_aux=True), (0, 0, None if target is None else 0)
        )
        gradients, outputs = gradients_of_models(self.params, images, target)
        return gradients, Outputs(*(t.squeeze(1) for t in outputs))
