"""Time of a training step of KDGAN-2 at batch size 1, contender beside contender.

    python -m bench.step

Each contender is first checked against the plain loop: from the same weights, a few steps on the
same images must change the weights alike. Then all are timed in turn, again and again, so that
whatever else the machine does meets all of them. Pixels are random: speed does not depend on them.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
import torch
from pkd_kernels import to_unit
from torch import Tensor

from bench.plain import PlainGAN, PlainLoop, copy_parameters, member_parameters
from pkd.hardware import device_name
from pkd.models import GAN, Architecture
from pkd.structures import KDGAN
from pkd.trainer import Trainer
from pkd.training_set import Member, TrainSet

STRUCTURE = KDGAN[2]
CLASSES = 10
TEACHER, STUDENT = 0, 1
CHECK_STEPS = 2
# Seen: 1e-5 and below with the default widths, at worst 4e-3 with 8-16-64, where a gradient near
# zero changes its sign by rounding and Adam makes a whole step of it. A missing term: 0.6 and more.
CHECK_TOLERANCE = 1e-2
WARM_UP_SECONDS = 0.5


@dataclass(frozen=True)
class Problem:
    """What is trained: networks, images and where."""

    teacher_widths: tuple[int, int, int]
    student_widths: tuple[int, int, int]
    images_per_class: int
    device: torch.device
    channels: int = 1

    def architecture(self, role: int) -> Architecture:
        widths = (self.teacher_widths, self.student_widths)[role]
        return Architecture(self.channels, widths)

    def members(self, stack: int) -> list[Member]:
        """Ten classes of a seed, then those of the next."""
        return [Member(m % CLASSES, m // CLASSES) for m in range(stack)]

    def gan(self, role: int, members: Sequence[Member]) -> GAN:
        """Networks of a stack; a member's weights are the same in every stack."""
        seeds = [member.first_weights(role) for member in members]
        return GAN(self.architecture(role), seeds).to(self.device)

    def data(self, members: Sequence[Member]) -> TrainSet:
        labels = np.repeat(np.arange(CLASSES), self.images_per_class)
        generator = torch.Generator().manual_seed(0)
        shape = (len(labels), self.channels, 32, 32)
        images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        return TrainSet(images, labels, members, device=self.device)


class Contender(Protocol):
    """A way to train `members`; a further rung or peer is one more of these."""

    members: Sequence[Member]

    def advance(self, steps: int) -> None:
        """Make that many further steps, without waiting for the device at the end."""

    def student(self, index: int) -> list[Tensor]:
        """Parameters of the student of members[index], in the order of a plain network."""


class Plain:
    """`bench.plain`, one model."""

    def __init__(self, problem: Problem, member: Member):
        self.members = [member]
        self.networks = [self._network(problem, role) for role in (TEACHER, STUDENT)]
        self.loop = PlainLoop(STRUCTURE, *self.networks)
        data = problem.data(self.members)
        self.images = to_unit(data.images)
        self.order = member.order(data.sizes[0], phase=0, epoch=0).tolist()
        self.done = 0

    def _network(self, problem: Problem, role: int) -> PlainGAN:
        form = problem.architecture(role)
        network = PlainGAN(form.channels, form.widths, form.latent).to(problem.device)
        copy_parameters(network, member_parameters(problem.gan(role, self.members), 0, 1))
        return network

    def advance(self, steps: int) -> None:
        for step in range(self.done, self.done + steps):
            row = self.order[step % len(self.order)]
            self.loop.step(self.images[row : row + 1])
        self.done += steps

    def student(self, index: int) -> list[Tensor]:
        return [p.detach() for p in self.networks[STUDENT].parameters()]


class Pkd:
    """`pkd.trainer.Trainer`, a stack of models; its loop over an epoch less its reports."""

    def __init__(self, problem: Problem, stack: int):
        self.members = problem.members(stack)
        teacher, student = (problem.gan(role, self.members) for role in (TEACHER, STUDENT))
        data = problem.data(self.members)
        self.trainer = Trainer(STRUCTURE, teacher, student, self.members, data)
        self.done = 0

    def advance(self, steps: int) -> None:
        for step in range(self.done, self.done + steps):
            if step % len(self.trainer.order) == 0:
                self.trainer.begin_epoch(0)
            self.trainer.advance()
        self.done += steps

    def student(self, index: int) -> list[Tensor]:
        return member_parameters(self.trainer.student, index, len(self.members))


def contenders(stack: int) -> dict[str, Callable[[Problem], Contender]]:
    """The rows of the table; the first is what the others are compared with."""
    return {
        "plain loop": lambda problem: Plain(problem, problem.members(1)[0]),
        "pkd, one model": partial(Pkd, stack=1),
        f"pkd, stack of {stack}": partial(Pkd, stack=stack),
    }


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All values in one vector, of float64 so that nothing is lost in comparing."""
    return torch.cat([t.flatten() for t in tensors]).double()


def disagreement(problem: Problem, contender: Contender) -> float:
    """How far a new contender's first steps differ from the plain loop's.

    Returns:
        ‖update - plain update‖ / ‖plain update‖ over all parameters of the last member.
    """
    index = len(contender.members) - 1
    plain = Plain(problem, contender.members[index])
    before = flat(plain.student(0))
    for each in (plain, contender):
        each.advance(CHECK_STEPS)
    expected = flat(plain.student(0))
    return ((flat(contender.student(index)) - expected).norm() / (expected - before).norm()).item()


def check(problem: Problem, name: str, contender: Contender) -> None:
    """Exit with a message if the contender does not do the plain loop's work."""
    found = disagreement(problem, contender)
    if not found < CHECK_TOLERANCE:
        raise SystemExit(
            f"{name}: updates differ from the plain loop's by {found:.1e} of their size"
        )
    print(f"{name}: first {CHECK_STEPS} updates agree with the plain loop's within {found:.1e}")


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_step(contender: Contender, steps: int, device: torch.device) -> float:
    """Wall time of `steps` steps, with one synchronisation; none may be pending."""
    start = time.perf_counter()
    contender.advance(steps)
    synchronize(device)
    return (time.perf_counter() - start) / steps


def steps_for(contender: Contender, seconds: float, device: torch.device) -> int:
    """Warm up, and find how many steps take about that long."""
    synchronize(device)
    steps, pace = 1, seconds_per_step(contender, 1, device)
    while steps * pace < WARM_UP_SECONDS:
        steps *= 2
        pace = seconds_per_step(contender, steps, device)
    return max(1, round(seconds / pace))


def interleaved(
    entries: dict[str, Contender], repeats: int, seconds: float, device: torch.device
) -> dict[str, list[float]]:
    """Seconds per step of every contender in every repeat; each repeat begins with another."""
    steps = {name: steps_for(entry, seconds, device) for name, entry in entries.items()}
    times: dict[str, list[float]] = {name: [0.0] * repeats for name in entries}
    names = list(entries)
    for repeat in range(repeats):
        shift = repeat % len(names)
        for name in names[shift:] + names[:shift]:
            times[name][repeat] = seconds_per_step(entries[name], steps[name], device)
    return times


def statistics(
    entries: dict[str, Contender], times: dict[str, list[float]]
) -> list[dict[str, Any]]:
    """One row a contender.

    `ratio` is the median over repeats of its images/s by those of the first contender in the same
    repeat.
    """
    rates = {name: [len(entries[name].members) / t for t in times[name]] for name in entries}
    first = rates[next(iter(rates))]
    return [
        {
            "name": name,
            "models": len(entries[name].members),
            "ms_per_step": [1e3 * t for t in times[name]],
            "ms_per_step_median": 1e3 * median(times[name]),
            "images_per_second": median(rates[name]),
            "ratio": median(rate / base for rate, base in zip(rates[name], first, strict=True)),
        }
        for name in entries
    ]


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'':24}{'ms/step':>9}{'(min - max)':>18}{'images/s':>11}{'ratio':>9}"]
    for row in rows:
        spread = f"({min(row['ms_per_step']):.3f} - {max(row['ms_per_step']):.3f})"
        lines.append(
            f"{row['name']:24}{row['ms_per_step_median']:9.3f}{spread:>18}"
            f"{row['images_per_second']:11.0f}{row['ratio']:8.1f}x"
        )
    return "\n".join(lines)


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """Of the sources, with "+" where they were changed since; None outside a repository."""
    here = Path(__file__).parent
    try:
        described = ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
        out = subprocess.run(described, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return out.stdout.strip()


def environment(device: torch.device) -> dict[str, Any]:
    """What a reader needs to judge and to repeat the numbers."""
    return {
        "device": device_name(device),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {p: installed(p) for p in ("torch", "triton", "numpy")},
        "cuda": torch.version.cuda,
        "commit": commit(),
    }


def widths(text: str) -> tuple[int, int, int]:
    a, b, c = map(int, text.split("-"))
    return a, b, c


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.step", description=__doc__.split("\n")[0]
    )
    add = partial(parser.add_argument, help="default %(default)s")
    add("--widths", type=widths, default="1-2-4", metavar="A-B-C", help="student; default 1-2-4")
    add("--teacher-widths", type=widths, default="64-128-256", metavar="A-B-C")
    add("--stack", type=int, default=30, help="models of the stack; default %(default)s")
    add("--images", type=int, default=200, help="images of a class; default %(default)s")
    add("--repeats", type=int, default=7)
    add("--seconds", type=float, default=2.0, help="of each repeat; default %(default)s")
    add("--threads", type=int, default=torch.get_num_threads(), help="of the CPU; default all")
    add("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    add("--json", type=Path, metavar="FILE", help="write what was measured here; default not")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False  # full float32, as `pkd train` computes
    problem = Problem(args.teacher_widths, args.widths, args.images, args.device)
    entries: dict[str, Contender] = {}
    for name, build in contenders(args.stack).items():
        entries[name] = build(problem)
        if len(entries) > 1:
            check(problem, name, entries[name])
    times = interleaved(entries, args.repeats, args.seconds, args.device)
    rows, around = statistics(entries, times), environment(args.device)
    print(f"\n{around['device']}, torch {around['versions']['torch']}")
    print(table(rows))
    if args.json:
        options = {key: str(value) for key, value in vars(args).items() if key != "json"}
        result = {"options": options, "environment": around, "rows": rows}
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
