"""Train one phase: one step function for every structure, its networks and their images.

Data flow of a step: rows of this epoch's order -> images (uint8 on the device) -> losses of every
network that the structure trains -> gradients, generators and discriminators apart -> one Adam.

All tensors of a step, its counter included, stay at fixed addresses on the device, so the host
only launches steps. On a GPU they are replays of one CUDA graph.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from types import MappingProxyType

import torch
from pkd_kernels import FlatAdam, gather, record_step, unit_grad
from torch import Tensor

from pkd.models.cost import cost
from pkd.models.ganomaly import GAN, Reconstruction, forward_gans, load_networks, network_tensors
from pkd.models.stack import Member
from pkd.training import cuda_graph
from pkd.training.callbacks import Callback
from pkd.training.history import LossHistory
from pkd.training.losses import NetworkLosses, Objective, network_losses, term_weights
from pkd.training.schedule import EpochSchedule
from pkd.training.structures import Structure
from pkd.training.train_set import TeacherCache, TrainSet
from pkd.utils.device import convolutions
from pkd.utils.errors import CheckpointError

REPORT_SECONDS = 0.25
OBJECTIVE = Objective()


class Trainer:
    """Train a stack with one structure, with fresh optimizer state.

    Args:
        structure: which losses are on.
        teacher: networks on the device of the data; None where the structure needs no teacher.
        student: likewise; None where only the teacher is trained.
        members: of the stack, in order.
        data: their images.
        phase: number of the phase; it seeds the data order.
        batch_size: images per step and member.
        lr: learning rate.
        lr_factors: trained network -> factor of the learning rate; 1 where it is missing.
        decay_epochs: the rate decreases to 0, linearly over that many epochs.
        betas: Adam's decay rates.
        objective: weights and reduction of the losses.
        callback: `on_batch_end` is called while the teacher's outputs are cached.
        use_graph: on a GPU, capture the step as a CUDA graph.
        on_graph_failure: called with the reason if the capture fails; steps then run eagerly.

    Attributes:
        schedule: order and rates of the epochs.
        order: (steps, N, M) int64 rows of this epoch's images, local to each class.
        rates: (steps, M) learning rates of this epoch.
        counter: (1,) int64 step of the epoch that comes next.
        steps: steps of each member in an epoch; a member is idle after its last step.
        history: losses of this epoch.
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
        lr_factors: Mapping[str, float] = MappingProxyType({}),
        decay_epochs: float = math.inf,
        betas: tuple[float, float] = (0.5, 0.999),
        objective: Objective = OBJECTIVE,
        callback: Callback | None = None,
        use_graph: bool = True,
        on_graph_failure: Callable[[str], None] = lambda reason: None,
    ):
        self.structure, self.members, self.data = structure, members, data
        self.teacher, self.student = teacher, student
        self.schedule = EpochSchedule(members, data.sizes, batch_size, phase, lr, decay_epochs)
        self.use_graph, self.on_graph_failure = use_graph, on_graph_failure
        device = data.first.device
        self.reduction = objective.reduction
        generator, distillation = (w.to(device) for w in term_weights(objective, len(members)))
        self.weights = {
            "teacher": generator,
            "student": generator * structure.student + distillation * structure.distill,
        }
        self._set_networks()
        params = self.generator_params + self.discriminator_params
        network_of = {p: name for name, gan in self.networks.items() for p in gan.parameters()}
        self.optimizer = FlatAdam(
            params,
            stack=len(members),
            lr=lr,
            lr_factors=[lr_factors.get(network_of[p], 1.0) for p in params],
            betas=betas,
            # With norm="batch" D runs twice a step, and a second gradient would replace the first.
            main_grad=all(gan.architecture.norm == "instance" for gan in self.networks.values()),
        )
        self._set_modes()
        self.sources = [data.source]
        if structure.cached_teacher:
            assert teacher is not None, "a structure that distils needs a teacher"
            with torch.no_grad():
                self.sources += TeacherCache(teacher, data, callback or Callback()).sources
        self.steps = self.schedule.steps
        length, m = max(self.steps), len(members)
        self.order = torch.zeros(length, batch_size, m, dtype=torch.int64, device=device)
        self.rates = torch.zeros(length, m, device=device)
        self.counter = torch.zeros(1, dtype=torch.int64, device=device)
        self.history = LossHistory(self.adversarial, members, self.steps, device)
        self._no_loss = torch.zeros(m, device=device)
        # Running statistics (norm="batch") change in forward; those of idle members must not.
        some_idle = len(set(self.steps)) > 1
        self._idle_statistics = [b.view(m, -1) for b in self._statistics()] if some_idle else []
        self._interval = 1  # steps between two checks of the losses

    def _set_networks(self) -> None:
        """The networks that the structure trains, and their parameters by optimisation target."""
        named = {"teacher": self.teacher, "student": self.student}
        networks = {name: gan for name, gan in named.items() if gan is not None}
        self.networks = {name: networks[name] for name in self.structure.trained}
        self.adversarial = {name: getattr(self.structure, name) for name in self.networks}
        gans = self.networks.values()
        adversarial = [gan for name, gan in self.networks.items() if self.adversarial[name]]
        self.generator_params = [p for gan in gans for p in gan.generator.parameters()]
        self.discriminator_params = [
            p for gan in adversarial for p in gan.discriminator.parameters()
        ]

    def _set_modes(self) -> None:
        """Put trained networks into training mode and the others into evaluation mode."""
        for name, gan in (("teacher", self.teacher), ("student", self.student)):
            if gan is not None:
                gan.train(name in self.networks)
                if name not in self.networks:
                    for p in gan.parameters():
                        # Views that would keep the gradient buffer of an earlier phase in memory.
                        p.grad = None
                        p.main_grad = None  # type: ignore[attr-defined] # FlatAdam adds it

    def losses(self) -> dict[str, NetworkLosses]:
        """Losses of every trained network on the images of step `counter`."""
        x, *cached = gather(self.sources, self.order, self.counter)
        gans, adversarial = list(self.networks.values()), list(self.adversarial.values())
        outputs = dict(zip(self.networks, forward_gans(gans, adversarial, x), strict=True))
        target = Reconstruction(*cached) if cached else None
        if self.structure.distill and not cached:
            # K_l trains the student alone, so no gradient reaches the teacher.
            target = Reconstruction(*(t.detach() for t in outputs["teacher"].reconstruction))
        targets = {"teacher": None, "student": target}
        return {
            name: network_losses(output, x, targets[name], self.weights[name], self.reduction)
            for name, output in outputs.items()
        }

    def set_grads(self, losses: dict[str, NetworkLosses]) -> None:
        """Pass the gradients of L_g and K_l to the generators and of L_d to the discriminators.

        All gradients come from one forward pass, with the weights from before the step. No network
        receives the gradient of another one's loss, see `forward_gans`.
        """
        totals = [t for g, d, _ in losses.values() for t in (g, d) if t is not None]
        params = self.generator_params + self.discriminator_params
        ones = [unit_grad(total) for total in totals]
        # None: an op has written this gradient into the optimizer's buffer (main_grad).
        self.optimizer.set_grads(torch.autograd.grad(totals, params, ones, allow_unused=True))

    def step(self) -> None:
        """Update every active member once, without waiting for the device."""
        before = [statistic.clone() for statistic in self._idle_statistics]
        losses = self.losses()
        # Record first: it advances `counter`, which nothing after it reads, and prepares the
        # optimizer's update.
        self._record(losses)
        self.set_grads(losses)
        self.optimizer.update()
        for value, old in zip(self._idle_statistics, before, strict=True):
            torch.where(self.optimizer.active[:, None], value, old, out=value)

    def _record(self, losses: dict[str, NetworkLosses]) -> None:
        """Record losses, prepare Adam with this step's rates and members, advance `counter`."""
        record_step(
            [(g, self._no_loss if d is None else d, terms) for g, d, terms in losses.values()],
            self.rates,
            self.history.steps_per_member,
            history=self.history.values,
            counter=self.counter,
            rate=self.optimizer.param_groups[0]["lr"],
            active=self.optimizer.active,
            step=self.optimizer.step_count,
            corrections=self.optimizer.corrections,
            betas=self.optimizer.param_groups[0]["betas"],
        )

    def advance(self) -> None:
        """Run `step`, as a replay of its CUDA graph where there is one."""
        with self._convolutions():
            (self._replay or self.step)()

    @cached_property
    def _convolutions(self) -> Callable[[], AbstractContextManager]:
        if self.counter.is_cuda:
            return nullcontext
        flops = max(cost(gan.architecture).flops for gan in self.networks.values())
        return convolutions(len(self.members) * self.schedule.batch_size, flops)

    @cached_property
    def _replay(self) -> Callable[[], None] | None:
        if not (self.use_graph and cuda_graph.available(self.counter.device)):
            return None
        try:
            return cuda_graph.capture(self.step, self._state_of_a_step(), self.counter)
        except cuda_graph.GraphCaptureError as reason:
            self.on_graph_failure(str(reason))
            return None

    def _state_of_a_step(self) -> list[Tensor]:
        """Tensors that a step changes and that a later step reads."""
        adam = self.optimizer
        state = [adam.flat, adam.exp_avg, adam.exp_avg_sq, adam.step_count, adam.active]
        state += [adam.param_groups[0]["lr"], adam.corrections, self.history.values, self.counter]
        return state + self._statistics()

    def _statistics(self) -> list[Tensor]:
        """Running statistics of the trained networks (norm="batch")."""
        return [buffer for gan in self.networks.values() for buffer in gan.buffers()]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[int]:
        """Train an epoch from step `start`; yield the steps done about every quarter of a second.

        Raises:
            DivergenceError: a loss or weight is not finite.
        """
        self.begin_epoch(epoch, start)
        done, length = start, max(self.steps)
        while done < length:
            clock, stop = time.monotonic(), min(done + self._interval, length)
            for _ in range(done, stop):
                self.advance()
            self.check_finite(done, stop, epoch)
            seconds_per_step = (time.monotonic() - clock) / (stop - done)
            self._interval = max(1, round(REPORT_SECONDS / seconds_per_step))
            done = stop
            yield done

    def begin_epoch(self, epoch: int, start: int = 0) -> None:
        """Copy the order and the rates of an epoch to the device; the next step is `start`."""
        self.order.copy_(self.schedule.order(epoch))
        self.rates.copy_(self.schedule.rates(epoch))
        self.counter.fill_(start)

    def check_finite(self, start: int, stop: int, epoch: int) -> None:
        """Check the losses of steps [start, stop) and the weights, see `LossHistory.check`."""
        params = self.generator_params + self.discriminator_params
        self.history.check(start, stop, epoch, self.optimizer.flat, params)

    def state(self, step: int) -> dict[str, Tensor]:
        """Tensors that training from `step` of an epoch on depends on."""
        state = network_tensors(self.networks) | self._moments()
        return state | {"history": self.history.values[:step]}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Continue from a `state`; CheckpointError if it does not fit the networks."""
        load_networks(self.networks, tensors)
        history = tensors.get("history")
        steps = 0 if history is None else len(history)
        targets = {"history": self.history.values[:steps]} | self._moments()
        for name, target in targets.items():
            value = tensors.get(name)
            if value is None or value.shape != target.shape:
                raise CheckpointError(
                    f"its {name} is missing or does not fit the networks and images of this run"
                )
            target.copy_(value)
        for name, views in self.optimizer.moments().items():
            pieces = targets[f"optimizer.{name}"].split([view.numel() for view in views])
            for view, piece in zip(views, pieces, strict=True):
                view.copy_(piece.view(view.shape))

    def _moments(self) -> dict[str, Tensor]:
        """Adam's steps, and copies of its moments without the padding of its buffers."""
        moments = {
            f"optimizer.{name}": torch.cat([view.flatten() for view in views])
            for name, views in self.optimizer.moments().items()
        }
        return moments | {"optimizer.step_count": self.optimizer.step_count}
