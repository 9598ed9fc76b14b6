"""One phase of training: a structure, its networks, their images; one step function for all.

Data flow of a step: rows of this epoch's order -> images (uint8 on the device) -> losses of every
network that the structure trains -> gradients, generators and discriminators apart -> one Adam.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from pkd_kernels import TERMS, FlatAdam, discriminator_loss, generator_loss
from torch import Tensor

from pkd.errors import UserError
from pkd.models import GAN, Reconstruction, load_networks, network_tensors
from pkd.structures import Structure
from pkd.training_set import Member, TeacherCache, TrainSet

LOSSES = ("generator", "discriminator", *TERMS)
REPORT_SECONDS = 0.25


@dataclass(frozen=True)
class Objective:
    """Weights and reading of the losses.

    Attributes:
        weights: of con, enc, adv, k1, kx, k2 (Eqs. 5 and 6): six numbers, or six for each member.
        reduction: "mean" or "norm", see `pkd_kernels.generator_loss`.
    """

    weights: Sequence[float] | Sequence[Sequence[float]] = (10.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    reduction: str = "mean"


class NetworkLosses(NamedTuple):
    """Losses of one network of the stack."""

    generator: Tensor  # (M,) what its generator minimises
    discriminator: Tensor | None  # (M,) what its discriminator minimises
    terms: Tensor  # (M, 6) for display

    def row(self) -> Tensor:
        """(M, 8) in the order of `LOSSES`."""
        d = self.discriminator if self.discriminator is not None else self.generator.new_zeros(())
        heads = torch.stack([self.generator.detach(), d.detach().expand_as(self.generator)], 1)
        return torch.cat([heads, self.terms], 1)


def network_losses(
    gan: GAN, x: Tensor, target: Reconstruction | None, weights: Tensor, reduction: str, own: bool
) -> tuple[Reconstruction, NetworkLosses]:
    """Forward of one network and its losses.

    Args:
        target: the teacher's outputs, for K_l; None without distillation.
        own: whether L_g and L_d are on; without them the discriminator is not run.
    """
    made = gan.generator(x)
    judged = gan.discriminator(x, made.xh) if own else None
    total, terms = generator_loss(
        x if own else None,
        made.xh,
        made.z1,
        made.z2,
        judged.f_real.detach() if own else None,
        judged.f_fake if own else None,
        teacher=target,
        weights=weights,
        reduction=reduction,
        stack=gan.stack,
    )
    d_loss = (
        discriminator_loss(judged.logits_real, judged.logits_fake, stack=gan.stack) if own else None
    )
    return made, NetworkLosses(total, d_loss, terms)


class Trainer:
    """Trains a stack with one structure; fresh optimizer, the networks as they are given.

    Args:
        structure: which losses are on.
        teacher, student: networks on the data's device; the student may be None where the
            structure trains only the teacher.
        members: of the stack, in order.
        data: their images.
        batch_size: images a step and member.
        phase: number that sets the data order of this phase apart from that of the others.
        lr: learning rate.
        decay_epochs: let the rate fall to 0, linearly over that many epochs.
        betas: Adam's decay rates.
        objective: weights and reading of the losses.
        check: called between pieces of work; may raise to stop.
    """

    def __init__(
        self,
        structure: Structure,
        teacher: GAN | None,
        student: GAN | None,
        members: Sequence[Member],
        data: TrainSet,
        *,
        phase: int = 0,
        batch_size: int = 1,
        lr: float = 0.002,
        decay_epochs: float = math.inf,
        betas: tuple[float, float] = (0.5, 0.999),
        objective: Objective = Objective(),
        check: Callable[[], None] = lambda: None,
    ):
        self.structure, self.teacher, self.student = structure, teacher, student
        self.members, self.data, self.phase, self.batch_size = members, data, phase, batch_size
        self.lr, self.decay_epochs = lr, decay_epochs
        self.reduction = objective.reduction
        weights = torch.tensor(objective.weights).expand(len(members), len(TERMS))
        on = torch.tensor([[[1.0] * 3 + [0.0] * 3], [[0.0] * 3 + [1.0] * 3]])
        own, distill = weights * on  # (M, 6) each
        device = data.first.device
        self.teacher_weights = own.to(device)
        self.student_weights = (own * structure.student + distill * structure.distill).to(device)
        networks = {"teacher": teacher, "student": student}
        self.adversarial = {"teacher": structure.teacher, "student": structure.student}
        self.networks = {name: networks[name] for name in structure.trained}
        self.generator_params = [
            p for gan in self.networks.values() for p in gan.generator.parameters()
        ]
        self.discriminator_params = [
            p
            for name, gan in networks.items()
            if self.adversarial[name]
            for p in gan.discriminator.parameters()
        ]
        self.optimizer = FlatAdam(
            self.generator_params + self.discriminator_params,
            stack=len(members),
            lr=lr,
            betas=betas,
        )
        for name, gan in networks.items():
            if gan is not None:
                gan.train(name in structure.trained)
                if name not in structure.trained:
                    gan.zero_grad(set_to_none=True)  # the gradient buffer of an earlier phase
        self.statistics = [b for gan in self.networks.values() for b in gan.buffers()]
        self._all_active = True
        self.cache = None
        if structure.cached_teacher:
            with torch.no_grad():
                self.cache = TeacherCache(teacher, data, check)
        self.steps = tuple(size // batch_size for size in data.sizes)
        self.history = torch.zeros(
            max(self.steps), len(self.networks), len(members), len(LOSSES), device=device
        )

    def losses(self, rows: Tensor) -> dict[str, NetworkLosses]:
        """Losses of every trained network on the images of `rows` (N, M), local to each class."""
        x = self.data.batch(rows + self.data.first)
        target = self.cache.batch(rows + self.cache.first) if self.cache else None
        found = {}
        if self.structure.teacher:
            made, found["teacher"] = network_losses(
                self.teacher, x, None, self.teacher_weights, self.reduction, own=True
            )
            target = Reconstruction(*(t.detach() for t in made))
        if "student" in self.networks:
            _, found["student"] = network_losses(
                self.student,
                x,
                target if self.structure.distill else None,
                self.student_weights,
                self.reduction,
                own=self.structure.student,
            )
        return found

    def set_grads(self, losses: dict[str, NetworkLosses]) -> None:
        """Gradients of L_g and K_l to the generators, of L_d to the discriminators, and no other.

        All come from the one forward pass, with the weights of before the step.
        """
        generator = torch.cat([loss.generator for loss in losses.values()]).sum()
        discriminators = [
            loss.discriminator for loss in losses.values() if loss.discriminator is not None
        ]
        grads = torch.autograd.grad(
            generator, self.generator_params, retain_graph=bool(discriminators)
        )
        if discriminators:
            total = torch.cat(discriminators).sum()
            grads += torch.autograd.grad(total, self.discriminator_params)
        self.optimizer.set_grads(grads)

    def step(self, rows: Tensor) -> Tensor:
        """One update of every active model; returns the losses as (networks, M, 8)."""
        with self._statistics_of_idle_models_kept():
            losses = self.losses(rows)
            self.set_grads(losses)
        self.optimizer.step()
        return torch.stack([loss.row() for loss in losses.values()])

    @contextmanager
    def _statistics_of_idle_models_kept(self) -> Iterator[None]:
        """Running statistics (norm="batch") change in forward, for idle members too: undo that."""
        if self._all_active or not self.statistics:
            yield
            return
        before = [buffer.clone() for buffer in self.statistics]
        yield
        active = self.optimizer.active[:, None]
        for buffer, old in zip(self.statistics, before, strict=True):
            now, old = buffer.view(len(active), -1), old.view(len(active), -1)
            now.copy_(torch.where(active, now, old))

    def epoch_order(self, epoch: int) -> Tensor:
        """(steps, N, M) local rows: each member's own permutation, an incomplete batch dropped.

        A class with fewer steps than the largest idles at the end on its row 0.
        """
        n, m = self.batch_size, len(self.members)
        order = np.zeros((max(self.steps), n, m), np.int64)
        for k, (member, size, steps) in enumerate(
            zip(self.members, self.data.sizes, self.steps, strict=True)
        ):
            drawn = member.order(size, self.phase, epoch)
            order[:steps, :, k] = drawn[: steps * n].reshape(steps, n)
        return torch.from_numpy(order).to(self.data.first.device)

    def epoch_rates(self, epoch: int) -> Tensor:
        """(steps, M) learning rates; a member's fall with its own steps, whatever the others'."""
        steps = torch.tensor(self.steps, dtype=torch.float64)
        done = epoch + torch.arange(max(self.steps))[:, None] / steps  # epochs
        rates = self.lr * (1.0 - done / self.decay_epochs).clamp_min(0.0)
        return rates.to(self.history)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[int]:
        """Train an epoch from step `start`, yielding the steps done every quarter of a second.

        Raises:
            UserError: a loss or weight is not finite, see `check_finite`.
        """
        order, rates = self.epoch_order(epoch), self.epoch_rates(epoch)
        changes = {start, *self.steps}
        reported, clock = start, time.monotonic()
        for step in range(start, max(self.steps)):
            if step in changes:
                self._activate(step)
            self.optimizer.param_groups[0]["lr"].copy_(rates[step])
            self.history[step] = self.step(order[step])
            now = time.monotonic()
            if now - clock >= REPORT_SECONDS or step + 1 == max(self.steps):
                self.check_finite(reported, step + 1, epoch)
                yield step + 1
                reported, clock = step + 1, time.monotonic()

    def _activate(self, step: int) -> None:
        active = [step < steps for steps in self.steps]
        self.optimizer.active.copy_(torch.tensor(active))
        self._all_active = all(active)

    def check_finite(self, start: int, stop: int, epoch: int) -> None:
        """Check the losses of steps [start, stop) and the weights after them.

        Raises:
            UserError: one is not finite; it names the member and the step.
        """
        bad = ~self.history[start:stop].isfinite().all(3).all(1)  # [steps, M]
        found = [(start + i, k) for i, k in bad.nonzero().tolist() if start + i < self.steps[k]]
        # A sum is one cheap pass over weights of perhaps hundreds of megabytes.
        if not found and not self.optimizer.flat.sum().isfinite():
            bad = self._members_with_bad_weights()
            found = [(min(stop, self.steps[k]) - 1, k) for k in bad]
        if found:
            step, member = found[0][0], self.members[found[0][1]]
            raise UserError(
                f"the loss or weights of {member} are no longer finite at step {step + 1} of epoch "
                f"{epoch + 1}; training stopped, the last checkpoint is kept: train anew with a "
                "lower --lr"
            )

    def _members_with_bad_weights(self) -> list[int]:
        params = self.generator_params + self.discriminator_params
        finite = [p.detach().view(len(self.members), -1).isfinite().all(1) for p in params]
        return (~torch.stack(finite).all(0)).nonzero().flatten().tolist()

    def epoch_losses(self) -> dict[str, dict[str, list[float]]]:
        """Mean of every loss over the epoch just trained: {network: {loss: [one per member]}}."""
        means = torch.stack(
            [self.history[:steps, :, k].double().mean(0) for k, steps in enumerate(self.steps)]
        ).tolist()  # [M, networks, 8]
        return {
            name: {loss: [row[i][j] for row in means] for j, loss in enumerate(LOSSES)}
            for i, name in enumerate(self.networks)
        }

    def recent_losses(self, step: int) -> dict[str, float]:
        """Mean over the stack of what each network minimised in the step before `step`."""
        row = self.history[step - 1].mean(1)[:, :2].tolist()
        return {
            f"{name} {short}": value
            for name, values in zip(self.networks, row, strict=True)
            for short, value in zip("GD", values, strict=True)
            if short == "G" or self.adversarial[name]
        }

    def state(self, step: int) -> dict[str, Tensor]:
        """Everything that training from `step` of an epoch on depends on, as named tensors."""
        state = network_tensors(self.networks) | self._moments()
        return state | {"history": self.history[:step]}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Continue from a `state`; UserError if it is of another architecture."""
        load_networks(self.networks, tensors)
        history = tensors.get("history")
        pairs = {"history": (self.history[: 0 if history is None else len(history)], history)}
        pairs |= {name: (own, tensors.get(name)) for name, own in self._moments().items()}
        for name, (own, saved) in pairs.items():
            if saved is None or saved.shape != own.shape:
                raise UserError(
                    f"its {name} is missing or does not fit the networks and images of this run"
                )
            own.copy_(saved)

    def _moments(self) -> dict[str, Tensor]:
        names = ("exp_avg", "exp_avg_sq", "step_count")
        return {f"optimizer.{name}": getattr(self.optimizer, name) for name in names}
