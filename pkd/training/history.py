"""Losses of the steps of an epoch, kept on the device and checked for non-finite values."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pkd.models.stack import Member
from pkd.training.losses import LOSSES
from pkd.utils.errors import DivergenceError


class LossHistory:
    """Losses of every step of the current epoch, for each member and trained network.

    Args:
        adversarial: trained network -> whether it has a discriminator loss.
        members: the stack.
        steps: steps of each member in an epoch; a member is idle after its last step.
        device: where the losses are recorded.

    Attributes:
        values: (steps, M, networks, 8) losses in the order of `LOSSES`.
        steps_per_member: (M,) int64 steps of each member in an epoch.
    """

    def __init__(
        self,
        adversarial: Mapping[str, bool],
        members: Sequence[Member],
        steps: Sequence[int],
        device: torch.device,
    ):
        self.adversarial, self.members, self.steps = dict(adversarial), members, steps
        shape = (max(steps), len(members), len(self.adversarial), len(LOSSES))
        self.values = torch.zeros(shape, device=device)
        self.steps_per_member = torch.tensor(steps, device=device)
        self._recent: list[float] = []

    def check(
        self, start: int, stop: int, epoch: int, flat: Tensor, parameters: Sequence[Tensor]
    ) -> None:
        """Wait for the device, then check losses and weights for non-finite values.

        Args:
            start: first step to check.
            stop: step after the last one to check.
            epoch: number of the epoch, from 0, for the message.
            flat: buffer with all weights, as they are after the last step.
            parameters: the same weights, each with the members along its first axis.

        Raises:
            DivergenceError: a value is not finite; the message names the member and the step.
        """
        active = self._active(start, stop)
        bad = active & ~self.values[start:stop].flatten(2).isfinite().all(2)  # [steps, M]
        # A sum is one cheap pass over hundreds of megabytes of weights at most.
        finite = ~bad.any() & flat.sum().isfinite()
        recent = self.values[stop - 1, :, :, :2].mean(0).flatten()
        # One transfer brings the flag and the losses to the host.
        finite, *self._recent = torch.cat([finite.to(recent)[None], recent]).tolist()
        if finite:
            return
        failures = [(start + step, k) for step, k in bad.nonzero().tolist()]
        failures += [(min(stop, self.steps[k]) - 1, k) for k in self._not_finite(parameters)]
        if failures:
            step, k = failures[0]
            raise DivergenceError(
                f"the loss or weights of {self.members[k]} are not finite at step {step + 1} of "
                f"epoch {epoch + 1}; training stopped, the last checkpoint is kept: train again "
                "with a lower `lr`"
            )

    def _active(self, start: int, stop: int) -> Tensor:
        """(steps, M) whether each member was active in the steps [start, stop)."""
        steps = torch.arange(start, stop, device=self.values.device)
        return steps[:, None] < self.steps_per_member

    def _not_finite(self, parameters: Sequence[Tensor]) -> list[int]:
        """Members with a weight that is not finite."""
        finite = [p.detach().view(len(self.members), -1).isfinite().all(1) for p in parameters]
        return (~torch.stack(finite).all(0)).nonzero().flatten().tolist()

    def epoch_means(self) -> dict[str, dict[str, list[float]]]:
        """Mean of every loss over the epoch: {network: {loss: [value of each member]}}."""
        active = self._active(0, len(self.values))[..., None, None]
        total = torch.where(active, self.values, 0).sum(0, dtype=torch.float64)  # [M, networks, 8]
        means = (total / self.steps_per_member[:, None, None]).tolist()
        return {
            name: {loss: [row[i][j] for row in means] for j, loss in enumerate(LOSSES)}
            for i, name in enumerate(self.adversarial)
        }

    def recent(self) -> dict[str, float]:
        """Losses of the last checked step, mean over the stack: {"student G": 0.5, ...}."""
        names = [(network, letter) for network in self.adversarial for letter in "GD"]
        return {
            f"{network} {letter}": value
            for (network, letter), value in zip(names, self._recent, strict=True)
            if letter == "G" or self.adversarial[network]
        }
