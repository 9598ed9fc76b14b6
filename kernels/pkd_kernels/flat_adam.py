"""Adam over one flat buffer: one update for all parameters of all networks and stacked models."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from pkd_kernels.dispatch import adam_step


class FlatAdam(torch.optim.Optimizer):
    """Adam (Kingma and Ba, 2015) for stacked models, without weight decay.

    The parameters move into one flat buffer `flat` and become views of it; `grad` is the flat
    buffer of their gradients, and each `p.grad` a view of that, as is `state[p]` of the moments.
    So it is made after a module got its device and type, cannot be copied, and has one group.

    Args:
        params: parameters of stacked models, each M equal blocks, one a model.
        stack: M.
        lr: learning rate, for all models or one for each. The group's "lr" is a tensor (M,) on
            the device: write into it to change a rate. torch's schedulers do so for M = 1 only.
        betas, eps: as in torch.optim.Adam.
        main_grad: set `p.main_grad`, else None, to the view that `p.grad` is. An op that knows it
            writes the gradient there, over what was there, and returns None to autograd, which then
            has nothing to copy or to add. For trainers that take each gradient once a step.

    Attributes:
        active: (M,) bool on the device; an inactive model keeps parameters, moments and step.
        step_count: (M,) steps each model has taken, "step" in every parameter's state.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        stack: int = 1,
        lr: float | Sequence[float] | Tensor = 0.002,
        betas: tuple[float, float] = (0.5, 0.999),
        eps: float = 1e-8,
        main_grad: bool = False,
    ):
        params = list(params)
        for p in params:
            if p.numel() % stack:
                raise ValueError(f"a parameter of shape {tuple(p.shape)} is not {stack} models")
        device = params[0].device
        rate = torch.as_tensor(lr, dtype=torch.get_default_dtype(), device=device)
        rate = rate.expand(stack).clone()
        super().__init__(params, {"lr": rate, "betas": betas, "eps": eps})
        self.sizes = tuple(p.numel() // stack for p in params)
        self.flat = torch.cat([p.detach().reshape(-1) for p in params])
        self.grad = torch.zeros_like(self.flat)
        self.exp_avg = torch.zeros_like(self.flat)
        self.exp_avg_sq = torch.zeros_like(self.flat)
        self.step_count = torch.zeros(stack, device=device)
        self.active = torch.ones(stack, dtype=torch.bool, device=device)
        self._arrivals = torch.zeros(1, dtype=torch.int32, device=device)
        self._grads = self._views(self.grad)
        views = (self._views(t) for t in (self.flat, self.exp_avg, self.exp_avg_sq))
        for p, grad, value, avg, avg_sq in zip(params, self._grads, *views, strict=True):
            p.data, p.grad = value, grad
            p.main_grad = grad if main_grad else None  # an earlier optimizer's would be written to
            self.state[p] = {"step": self.step_count, "exp_avg": avg, "exp_avg_sq": avg_sq}
        self._addresses = [p.data_ptr() for p in params]

    def add_param_group(self, param_group: dict) -> None:
        """Refused once there is a group: its parameters would be in no flat buffer."""
        if self.param_groups:
            raise ValueError("FlatAdam has one group of parameters: make another FlatAdam")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict:
        raise TypeError(
            "FlatAdam cannot be copied or pickled, because its parameters are views of its buffer: "
            "save its state_dict(), make another FlatAdam and load that"
        )

    def _views(self, flat: Tensor) -> list[Tensor]:
        params = self.param_groups[0]["params"]
        pieces = flat.split([p.numel() for p in params])
        return [piece.view(p.shape) for piece, p in zip(pieces, params, strict=True)]

    def set_grads(self, grads: Sequence[Tensor | None]) -> None:
        """Copy gradients, in the order of the parameters, into the flat buffer.

        None is a gradient that lies there already, see `main_grad`.
        """
        if all(g is not None for g in grads):
            torch.cat([g.reshape(-1) for g in grads], out=self.grad)
            return
        pairs = [(v, g) for v, g in zip(self._grads, grads, strict=True) if g is not None]
        if pairs:
            views, given = zip(*pairs, strict=True)
            torch._foreach_copy_(views, given)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Zero the gradients in place: they stay views of the flat buffer, never None."""
        self.grad.zero_()

    @torch.no_grad()
    def step(self, closure=None):
        """Take one step with the gradients that lie in the flat buffer.

        Raises:
            RuntimeError: a `p.grad` or a parameter is no longer a view of its flat buffer. Under
                torch.compile, which cannot compare addresses, nobody looks.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]
        params, flat = group["params"], self.flat
        compiling = torch.compiler.is_compiling()
        if compiling:  # it refuses a graph that reads parameters and writes what they are views of
            flat = torch.cat([p.reshape(-1) for p in params])
        else:
            self._check_views()
        adam_step(
            flat,
            self.grad,
            self.exp_avg,
            self.exp_avg_sq,
            self.step_count,
            group["lr"],
            self.active,
            sizes=self.sizes,
            betas=group["betas"],
            eps=group["eps"],
            arrivals=self._arrivals,
        )
        if compiling:
            torch._foreach_copy_(params, self._views(flat))
        return loss

    def _check_views(self) -> None:
        params = self.param_groups[0]["params"]
        for p, grad, address in zip(params, self._grads, self._addresses, strict=True):
            if p.grad is not grad:
                raise RuntimeError(
                    "a parameter's grad was replaced (set to None by another zero_grad?): FlatAdam "
                    "reads only its own buffer; clear gradients with its zero_grad()"
                )
            if p.data_ptr() != address:
                raise RuntimeError(
                    "a parameter left the flat buffer (its module was converted, say by .to() or "
                    ".double()?): convert modules first and make FlatAdam then"
                )

    def load_state_dict(self, state_dict: dict) -> None:
        """Copy a `state_dict` back, in place; a tensor of another shape raises ValueError."""
        own, saved = self.state_dict(), state_dict
        (group,), (saved_group,) = own["param_groups"], saved["param_groups"]
        pairs = {"lr": (group["lr"], saved_group["lr"])}
        if own["state"].keys() != saved["state"].keys():
            raise ValueError(f"{len(saved['state'])} parameters saved, not {len(own['state'])}")
        for i, state in own["state"].items():
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
