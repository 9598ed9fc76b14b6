"""One phase of training: a structure, its networks, their images; one step function for all.

Data flow of a step: rows of this epoch's order -> images (uint8 on the device) -> losses of every
network that the structure trains -> gradients, generators and discriminators apart -> one Adam.

All that a step reads and writes lies on the device at fixed addresses, the number of the step
included: the host only starts steps. On a GPU they are replays of one CUDA graph.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import numpy as np
import torch
from pkd_kernels import (
    TERMS,
    FlatAdam,
    gather,
    record_step,
    unit_upstream,
)
from torch import Tensor, nn

from pkd.models.cost import cost
from pkd.models.ganomaly import GAN, Reconstruction, load_networks, network_tensors
from pkd.models.stack import Member
from pkd.training import cuda_graph
from pkd.training.losses import LOSSES, NetworkLosses, Objective, network_losses
from pkd.training.structures import Structure
from pkd.training.train_set import TeacherCache, TrainSet
from pkd.utils.device import convolutions
from pkd.utils.errors import PkdError

REPORT_SECONDS = 0.25


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
        use_graph: on a GPU, capture the step as a CUDA graph.
        told: called with the reason if it cannot be captured; steps run eagerly then.

    Attributes:
        order: (steps, N, M) int64 rows of this epoch's images, local to each class.
        rates: (steps, M) learning rates of this epoch.
        counter: (1,) int64, the step of the epoch that comes next.
        steps_of: (M,) int64 steps of each member in an epoch; from there on it is idle.
        history: (steps, M, networks, 8) losses of this epoch, in the order of `LOSSES`.
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
        use_graph: bool = True,
        told: Callable[[str], None] = lambda reason: None,
    ):
        self.structure, self.teacher, self.student = structure, teacher, student
        self.members, self.data, self.phase, self.batch_size = members, data, phase, batch_size
        self.lr, self.decay_epochs = lr, decay_epochs
        self.reduction = objective.reduction
        self.use_graph, self.told = use_graph, told
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
            # With norm="batch" D runs twice a step, and a second gradient would replace the first.
            main_grad=all(g.architecture.norm == "instance" for g in self.networks.values()),
        )
        for name, gan in networks.items():
            if gan is not None:
                gan.train(name in structure.trained)
                if name not in structure.trained:
                    for p in gan.parameters():
                        p.grad = p.main_grad = None  # the buffer of an earlier phase
        self.sources = [data.source]
        if structure.cached_teacher:
            with torch.no_grad():
                self.sources += TeacherCache(teacher, data, check).sources
        self.steps = tuple(size // batch_size for size in data.sizes)
        m, length = len(members), max(self.steps)
        self.order = torch.zeros(length, batch_size, m, dtype=torch.int64, device=device)
        self.rates = torch.zeros(length, m, device=device)
        self.history = torch.zeros(length, m, len(self.networks), len(LOSSES), device=device)
        self.counter = torch.zeros(1, dtype=torch.int64, device=device)
        self.steps_of = torch.tensor(self.steps, device=device)
        self._absent = torch.zeros(m, device=device)
        # Running statistics (norm="batch") change in forward; those of idle models must not.
        some_idle = len(set(self.steps)) > 1
        self._idle_statistics = [b.view(m, -1) for b in self._statistics()] if some_idle else []
        self._interval = 1
        self._recent: list[float] = []

    def losses(self) -> dict[str, NetworkLosses]:
        """Losses of every trained network on the images of the step that `counter` names."""
        x, *cached = gather(self.sources, self.order, self.counter)
        target = Reconstruction(*cached) if cached else None
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

        def gradients(
            totals: list[Tensor], params: list[nn.Parameter], last: bool
        ) -> tuple[Tensor | None, ...]:
            ones = [unit_upstream(total) for total in totals]
            # None: what an op wrote into the optimizer's buffer itself.
            return torch.autograd.grad(
                totals, params, ones, retain_graph=not last, allow_unused=True
            )

        discriminators = [d for _, d, _ in losses.values() if d is not None]
        generators = [loss.generator for loss in losses.values()]
        grads = gradients(generators, self.generator_params, last=not discriminators)
        if discriminators:
            grads += gradients(discriminators, self.discriminator_params, last=True)
        self.optimizer.set_grads(grads)

    def step(self) -> None:
        """One update of every active model, then on to the next step: on the device alone."""
        before = [statistic.clone() for statistic in self._idle_statistics]
        losses = self.losses()
        self._record(losses)
        self.set_grads(losses)
        self.optimizer.step()
        for now, old in zip(self._idle_statistics, before, strict=True):
            torch.where(self.optimizer.active[:, None], now, old, out=now)

    def _record(self, losses: dict[str, NetworkLosses]) -> None:
        """Losses into the history, this step's rates and activity to Adam, `counter` to the next.

        What is left of the step after that reads its number no more.
        """
        record_step(
            [(g, self._absent if d is None else d, terms) for g, d, terms in losses.values()],
            self.rates,
            self.steps_of,
            history=self.history,
            counter=self.counter,
            rate=self.optimizer.param_groups[0]["lr"],
            active=self.optimizer.active,
        )

    def advance(self) -> None:
        """`step`, as a replay of its graph where there is one."""
        with self._convolutions():
            (self._replay or self.step)()

    @cached_property
    def _convolutions(self) -> Callable[[], AbstractContextManager]:
        if self.counter.is_cuda:
            return nullcontext
        largest = max(cost(gan.architecture).flops for gan in self.networks.values())
        return convolutions(len(self.members) * self.batch_size, largest)

    @cached_property
    def _replay(self) -> Callable[[], None] | None:
        if not (self.use_graph and cuda_graph.available(self.counter.device)):
            return None
        try:
            return cuda_graph.captured(self.step, self._changes(), self.counter)
        except cuda_graph.NoGraph as reason:
            self.told(str(reason))
            return None

    def _changes(self) -> list[Tensor]:
        """All that one step leaves to the next."""
        adam = self.optimizer
        moments = (adam.flat, adam.exp_avg, adam.exp_avg_sq, adam.step_count)
        now = (adam.active, adam.param_groups[0]["lr"], self.history, self.counter)
        return [*moments, *now, *self._statistics()]

    def _statistics(self) -> list[Tensor]:
        return [buffer for gan in self.networks.values() for buffer in gan.buffers()]

    def begin_epoch(self, epoch: int, start: int = 0) -> None:
        """Let the next step be step `start` of an epoch."""
        self.order.copy_(self.epoch_order(epoch))
        self.rates.copy_(self.epoch_rates(epoch))
        self.counter.fill_(start)

    def epoch_order(self, epoch: int) -> Tensor:
        """(steps, N, M) local rows: each member's own permutation, an incomplete batch dropped.

        A class with fewer steps than the largest idles at the end on its row 0.
        """
        n, m = self.batch_size, len(self.members)
        order = np.zeros((max(self.steps), n, m), np.int64)
        for k, (member, size, steps) in enumerate(
            zip(self.members, self.data.sizes, self.steps, strict=True)
        ):
            drawn = member.data_order(size, self.phase, epoch)
            order[:steps, :, k] = drawn[: steps * n].reshape(steps, n)
        return torch.from_numpy(order)

    def epoch_rates(self, epoch: int) -> Tensor:
        """(steps, M) learning rates; a member's fall with its own steps, whatever the others'."""
        steps = torch.tensor(self.steps, dtype=torch.float64)
        done = epoch + torch.arange(max(self.steps))[:, None] / steps  # epochs
        rates = self.lr * (1.0 - done / self.decay_epochs).clamp_min(0.0)
        return rates.to(self.history.dtype)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[int]:
        """Train an epoch from step `start`, yielding the steps done every quarter of a second.

        Raises:
            PkdError: a loss or weight is not finite, see `read_back`.
        """
        self.begin_epoch(epoch, start)
        done, length = start, max(self.steps)
        while done < length:
            clock, stop = time.monotonic(), min(done + self._interval, length)
            for _ in range(done, stop):
                self.advance()
            self.read_back(done, stop, epoch)
            pace = (time.monotonic() - clock) / (stop - done)
            self._interval = max(1, round(REPORT_SECONDS / pace))
            done = stop
            yield done

    def read_back(self, start: int, stop: int, epoch: int) -> None:
        """Wait for the device; check the losses of steps [start, stop) and the weights after them.

        Raises:
            PkdError: one is not finite; it names the member and the step.
        """
        ran = self._ran(start, stop)
        bad = ran & ~self.history[start:stop].flatten(2).isfinite().all(2)  # [steps, M]
        # A sum is one cheap pass over weights of perhaps hundreds of megabytes.
        fine = ~bad.any() & self.optimizer.flat.sum().isfinite()
        recent = self.history[stop - 1, :, :, :2].mean(0).flatten()
        fine, *self._recent = torch.cat([fine.to(recent)[None], recent]).tolist()
        if fine:
            return
        found = [(start + i, k) for i, k in bad.nonzero().tolist()]
        found += [(min(stop, self.steps[k]) - 1, k) for k in self._members_with_bad_weights()]
        if found:
            step, member = found[0][0], self.members[found[0][1]]
            raise PkdError(
                f"the loss or weights of {member} are no longer finite at step {step + 1} of epoch "
                f"{epoch + 1}; training stopped, the last checkpoint is kept: train anew with a "
                "lower --lr"
            )

    def _ran(self, start: int, stop: int) -> Tensor:
        """(steps, M) which members were active in steps [start, stop)."""
        return torch.arange(start, stop, device=self.counter.device)[:, None] < self.steps_of

    def _members_with_bad_weights(self) -> list[int]:
        params = self.generator_params + self.discriminator_params
        finite = [p.detach().view(len(self.members), -1).isfinite().all(1) for p in params]
        return (~torch.stack(finite).all(0)).nonzero().flatten().tolist()

    def epoch_losses(self) -> dict[str, dict[str, list[float]]]:
        """Mean of every loss over the epoch just trained: {network: {loss: [one per member]}}."""
        ran = self._ran(0, len(self.history))[..., None, None]
        total = torch.where(ran, self.history, 0).sum(0, dtype=torch.float64)  # [M, networks, 8]
        means = (total / self.steps_of[:, None, None]).tolist()
        return {
            name: {loss: [row[i][j] for row in means] for j, loss in enumerate(LOSSES)}
            for i, name in enumerate(self.networks)
        }

    def recent_losses(self) -> dict[str, float]:
        """Mean over the stack of what each network minimised in the last step read back."""
        names = [(name, short) for name in self.networks for short in "GD"]
        return {
            f"{name} {short}": value
            for (name, short), value in zip(names, self._recent, strict=True)
            if short == "G" or self.adversarial[name]
        }

    def state(self, step: int) -> dict[str, Tensor]:
        """Everything that training from `step` of an epoch on depends on, as named tensors."""
        state = network_tensors(self.networks) | self._moments()
        return state | {"history": self.history[:step]}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Continue from a `state`; PkdError if it is of another architecture."""
        load_networks(self.networks, tensors)
        history = tensors.get("history")
        pairs = {"history": (self.history[: 0 if history is None else len(history)], history)}
        pairs |= {name: (own, tensors.get(name)) for name, own in self._moments().items()}
        for name, (own, saved) in pairs.items():
            if saved is None or saved.shape != own.shape:
                raise PkdError(
                    f"its {name} is missing or does not fit the networks and images of this run"
                )
            own.copy_(saved)

    def _moments(self) -> dict[str, Tensor]:
        names = ("exp_avg", "exp_avg_sq", "step_count")
        return {f"optimizer.{name}": getattr(self.optimizer, name) for name in names}
