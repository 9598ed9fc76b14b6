"""Adam over one flat buffer: one update for all parameters of all networks and stacked models."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from pkd_kernels.reference import adam_step


class FlatAdam(torch.optim.Optimizer):
    """Adam (Kingma and Ba, 2015) for stacked models, without weight decay.

    The parameters move into one flat buffer `flat` and become views of it; `grad` is the flat
    buffer of their gradients, and each `p.grad` a view of that.

    Args:
        params: parameters of stacked models, each M equal blocks, one a model.
        stack: M.
        lr: learning rate, for all models.
        betas, eps: as in torch.optim.Adam.

    Attributes:
        active: (M,) bool on the device; an inactive model keeps parameters, moments and step.
        step_count: (M,) steps each model has taken.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        stack: int = 1,
        lr: float = 0.002,
        betas: tuple[float, float] = (0.5, 0.999),
        eps: float = 1e-8,
    ):
        params = list(params)
        device = params[0].device
        rate = torch.full((stack,), lr, device=device)
        super().__init__(params, {"lr": rate, "betas": betas, "eps": eps})
        self.sizes = tuple(p.numel() // stack for p in params)
        self.flat = torch.cat([p.detach().reshape(-1) for p in params])
        self.grad = torch.zeros_like(self.flat)
        self.exp_avg = torch.zeros_like(self.flat)
        self.exp_avg_sq = torch.zeros_like(self.flat)
        self.step_count = torch.zeros(stack, device=device)
        self.active = torch.ones(stack, dtype=torch.bool, device=device)
        for p, value, grad in zip(
            params, self._views(self.flat), self._views(self.grad), strict=True
        ):
            p.data, p.grad = value, grad

    def _views(self, flat: Tensor) -> list[Tensor]:
        params = self.param_groups[0]["params"]
        pieces = flat.split([p.numel() for p in params])
        return [piece.view(p.shape) for piece, p in zip(pieces, params, strict=True)]

    def set_grads(self, grads: Sequence[Tensor]) -> None:
        """Copy gradients, in the order of the parameters, into the flat buffer."""
        torch.cat([g.reshape(-1) for g in grads], out=self.grad)

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Zero the gradients in place: they stay views of the flat buffer, never None."""
        self.grad.zero_()

    @torch.no_grad()
    def step(self, closure=None):
        """Take one step with the gradients that lie in the flat buffer."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]
        adam_step(
            self.flat,
            self.grad,
            self.exp_avg,
            self.exp_avg_sq,
            self.step_count,
            group["lr"],
            self.active,
            sizes=self.sizes,
            betas=group["betas"],
            eps=group["eps"],
        )
        return loss

    def state_dict(self) -> dict[str, Tensor]:
        """The moments, counts and rates as flat tensors (views, not copies)."""
        return {
            "exp_avg": self.exp_avg,
            "exp_avg_sq": self.exp_avg_sq,
            "step": self.step_count,
            "lr": self.param_groups[0]["lr"],
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy a `state_dict` back, in place; a tensor of another shape raises ValueError."""
        for name, tensor in self.state_dict().items():
            if state[name].shape != tensor.shape:
                raise ValueError(
                    f"optimizer state {name!r} has shape {tuple(state[name].shape)}, "
                    f"not {tuple(tensor.shape)}"
                )
            tensor.copy_(state[name])
