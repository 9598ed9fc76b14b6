"""Adam over one flat buffer: one update for all parameters of all networks and stacked models."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pkd_kernels.dispatch import adam_prepare, adam_step, uses_triton

# The kernels read a parameter by 128 bits where it begins at a multiple of 16 bytes; in every type:
ALIGNMENT = 8


class FlatAdam(torch.optim.Optimizer):
    """Adam (Kingma and Ba, 2015) for stacked models, without weight decay.

    The parameters move into one flat buffer `flat` and become views of it; for the kernels each is
    padded with zeros. `grad` is the flat buffer of their gradients: each `p.grad` is a view of it,
    and `state[p]` has views of the flat moments. So create the optimizer after the module has its
    device and type. It cannot be copied and has one parameter group.

    Args:
        params: parameters of stacked models, each M equal blocks, one for each model.
        stack: M.
        lr: learning rate, for all models or one for each. The group's "lr" is a tensor (M,) on
            the device: write into it to change a rate. torch's schedulers do so for M = 1 only.
        lr_factors: one for each parameter; the rate of parameter p of model m is
            lr[m] * lr_factors[p]. None sets all to 1.
        betas: decay rates of the moments, as in torch.optim.Adam.
        eps: added to the denominator, as in torch.optim.Adam.
        main_grad: set `p.main_grad` to the view that `p.grad` is; False sets None. An op that
            supports it overwrites this view with the gradient and returns None to autograd, which
            saves a copy. Use it only where each gradient is computed once a step.

    Attributes:
        flat: (P,) parameters, with padding.
        grad: (P,) gradients.
        exp_avg: (P,) first moments.
        exp_avg_sq: (P,) second moments.
        active: (M,) bool on the device; an inactive model keeps parameters, moments and step.
        step_count: (M,) steps that each model has taken, "step" in every parameter's state.
        corrections: (2, M), see `pkd_kernels.adam_prepare`.

    Raises:
        ValueError: a parameter cannot be split into M equal blocks, or the number of factors is not
            that of the parameters.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        stack: int = 1,
        lr: float | Sequence[float] | Tensor = 0.002,
        lr_factors: Sequence[float] | None = None,
        betas: tuple[float, float] = (0.5, 0.999),
        eps: float = 1e-8,
        main_grad: bool = False,
    ):
        params = list(params)
        for p in params:
            if p.numel() % stack:
                raise ValueError(
                    f"a parameter of shape {tuple(p.shape)} does not fit {stack} models"
                )
        if lr_factors is not None and len(lr_factors) != len(params):
            raise ValueError(f"{len(lr_factors)} factors do not fit {len(params)} parameters")
        device = params[0].device
        rate = torch.as_tensor(lr, dtype=torch.get_default_dtype(), device=device)
        rate = rate.expand(stack).clone()
        super().__init__(params, {"lr": rate, "betas": betas, "eps": eps})
        self.sizes = tuple(p.numel() // stack for p in params)
        self.lr_factors = None if lr_factors is None else tuple(lr_factors)
        step = ALIGNMENT if uses_triton(params[0]) else 1
        self.lengths = tuple(-(-p.numel() // step) * step for p in params)
        self.flat = params[0].new_zeros(sum(self.lengths)).detach()
        self.grad = torch.zeros_like(self.flat)
        self.exp_avg = torch.zeros_like(self.flat)
        self.exp_avg_sq = torch.zeros_like(self.flat)
        self.step_count = torch.zeros(stack, device=device)
        self.active = torch.ones(stack, dtype=torch.bool, device=device)
        wide = torch.float64 if self.flat.dtype == torch.float64 else torch.float32
        self.corrections = torch.zeros(2, stack, dtype=wide, device=device)
        self._grads = self._views(self.grad)
        views = (self._views(t) for t in (self.flat, self.exp_avg, self.exp_avg_sq))
        for p, grad, value, avg, avg_sq in zip(params, self._grads, *views, strict=True):
            value.copy_(p.detach())
            p.data, p.grad = value, grad
            p.main_grad = grad if main_grad else None  # ops read it
            self.state[p] = {"step": self.step_count, "exp_avg": avg, "exp_avg_sq": avg_sq}
        self._addresses = [p.data_ptr() for p in params]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add the only group; a second one raises ValueError, as it has no flat buffer."""
        if self.param_groups:
            raise ValueError("FlatAdam has one parameter group: create another FlatAdam")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "FlatAdam cannot be copied or pickled, because its parameters are views of its buffer: "
            "save its state_dict() and load it into another FlatAdam"
        )

    def _views(self, flat: Tensor) -> list[Tensor]:
        params = self.param_groups[0]["params"]
        pieces = flat.split(self.lengths)
        return [piece[: p.numel()].view(p.shape) for piece, p in zip(pieces, params, strict=True)]

    def moments(self) -> dict[str, list[Tensor]]:
        """Views of the first and second moments of every parameter, by name."""
        return {name: self._views(getattr(self, name)) for name in ("exp_avg", "exp_avg_sq")}

    def set_grads(self, grads: Sequence[Tensor | None]) -> None:
        """Copy gradients, in the order of the parameters, into the flat buffer.

        None is a gradient that an op has already written to the buffer, see `main_grad`.
        """
        pairs = [(v, g) for v, g in zip(self._grads, grads, strict=True) if g is not None]
        if pairs:
            views, values = zip(*pairs, strict=True)
            torch._foreach_copy_(views, values)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Zero the gradients in place: they remain views of the flat buffer, never None."""
        self.grad.zero_()

    # torch declares two overloads of `step`, which mypy cannot match with one signature.
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step with the gradients in the flat buffer.

        Raises:
            RuntimeError: a `p.grad` or a parameter is no longer a view of its flat buffer.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]
        models = self.step_count, group["lr"], self.active, self.corrections
        adam_prepare(*models, betas=group["betas"])
        self.update()
        return loss

    @torch.no_grad()
    def update(self) -> None:
        """`step` without its preparation, after a `record_step` with this optimizer's tensors.

        Raises:
            RuntimeError: see `step`.
        """
        self._check_views()
        group = self.param_groups[0]
        adam_step(
            self.flat,
            self.grad,
            self.exp_avg,
            self.exp_avg_sq,
            self.step_count,
            group["lr"],
            self.active,
            self.corrections,
            sizes=self.sizes,
            betas=group["betas"],
            eps=group["eps"],
            lengths=self.lengths,
            lr_factors=self.lr_factors,
        )

    def _check_views(self) -> None:
        params = self.param_groups[0]["params"]
        for p, grad, address in zip(params, self._grads, self._addresses, strict=True):
            if p.grad is not grad:
                raise RuntimeError(
                    "a parameter's grad was replaced (set to None by another zero_grad?): FlatAdam "
                    "reads gradients from its flat buffer only; clear them with its zero_grad()"
                )
            if p.data_ptr() != address:
                raise RuntimeError(
                    "a parameter left the flat buffer (was its module converted, as by .to() or "
                    ".double()?): convert modules before creating FlatAdam"
                )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy a `state_dict` back, in place.

        Raises:
            ValueError: the number of parameters or the shape of a tensor differs.
        """
        current, saved = self.state_dict(), state_dict
        (group,), (saved_group,) = current["param_groups"], saved["param_groups"]
        pairs = {"lr": (group["lr"], saved_group["lr"])}
        if current["state"].keys() != saved["state"].keys():
            raise ValueError(f"{len(saved['state'])} parameters saved, not {len(current['state'])}")
        for i, state in current["state"].items():
            pairs |= {f"{i}.{name}": (t, saved["state"][i][name]) for name, t in state.items()}
        for name, (tensor, value) in pairs.items():
            if tensor.shape != value.shape:
                raise ValueError(
                    f"optimizer state {name!r} has shape {tuple(value.shape)}, "
                    f"not {tuple(tensor.shape)}"
                )
        for tensor, value in pairs.values():
            tensor.copy_(value)
        self.param_groups[0].update({k: saved_group[k] for k in ("betas", "eps")})
