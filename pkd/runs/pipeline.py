"""A whole run: its folder, then teacher, step 1 and step 2 (Algorithm 1), and its results."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pkd.models.ganomaly import network_tensors
from pkd.runs.callbacks import Reporter
from pkd.runs.data import TrainSplit
from pkd.runs.folder import Progress, write_atomically
from pkd.runs.plots import save_training_curves
from pkd.runs.results import build_results
from pkd.runs.run import Run
from pkd.runs.stack_loop import Clock, Epochs
from pkd.scoring.novelty import own_scores
from pkd.training.config import Phase
from pkd.training.factory import phase_trainer


class Schedule:
    """The phases of a run, one after the other, each stack after stack.

    Args:
        run: its folder created, or resumed and perhaps half done.
        reporter: told of the progress.
        check: called often; may raise Interrupted.
    """

    def __init__(
        self,
        run: Run,
        reporter: Reporter | None = None,
        check: Callable[[], None] = lambda: None,
    ):
        self.run, self.reporter, self.check = run, reporter or Reporter(), check
        self.use_graph = run.config.graph

    def train(self) -> dict[str, Any]:
        """Train what is left to train, write results.json and curves.png, return the results."""
        run, folder = self.run, self.run.folder
        for phase in run.phases[: folder.progress.phase]:
            run.load_phase(phase)
        if folder.progress.phase < len(run.phases):
            run.config.training_device()  # another machine may have begun
            with run.precision():
                self._train_phases()
        elif (written := folder.results()) is not None:
            return written  # with the hardware and versions of the machine that trained
        write_atomically(
            folder.path / "curves.png",
            lambda path: save_training_curves(path, folder.metrics, run.config.dataset),
        )
        results = build_results(run, folder.progress.auc)
        folder.write_json("results.json", results)
        return results

    def _train_phases(self) -> None:
        run = self.run
        split = TrainSplit(run.config, run.dataset)
        if len(run.stacks) > 1:
            sizes = " + ".join(str(stack.stop - stack.start) for stack in run.stacks)
            self.reporter.note(
                f"{len(run.members)} models in stacks of {sizes}, one after the other"
            )
        for number in range(run.folder.progress.phase, len(run.phases)):
            self._train_phase(number, split)

    def _train_phase(self, number: int, split: TrainSplit) -> None:
        """Train what is left of a phase, one stack after the other, and score what is held out."""
        run, phase = self.run, self.run.phases[number]
        test_scores: dict[str, Tensor] = {}  # of the stacks that are done
        for index in range(run.folder.progress.stack, len(run.stacks)):
            progress = self._train_stack(number, index, split, test_scores)
        progress.phase, progress.stack, progress.epoch = number + 1, 0, 0
        progress.auc = progress.auc | {phase.name: run.folder.metrics[-1]["auc"]}
        tensors = network_tensors(run.trained(phase))
        tensors |= {f"held_out.{k}": own for k, own in enumerate(self._held_out(phase, split))}
        tensors["test_scores"] = torch.cat(list(test_scores.values()), 1)
        run.folder.save_phase(phase.name, tensors, progress)

    def _train_stack(
        self, number: int, index: int, split: TrainSplit, test_scores: dict[str, Tensor]
    ) -> Progress:
        """Train what is left of a phase for a stack; returns the progress then reached."""
        run, members = self.run, self.run.members[self.run.stacks[index]]
        clock = Clock(run.folder.progress.seconds.get(run.phases[number].name, 0.0))
        trainer = phase_trainer(
            run.config,
            number,
            run.on_device(run.stacks[index]),
            members,
            split.train_set(members, run.device),
            self.check,
            use_graph=self.use_graph,
            told=self._go_without_graph,
        )
        return Epochs(run, index, trainer, clock, self.reporter, self.check, test_scores).train()

    def _go_without_graph(self, reason: str) -> None:
        """Steps cannot be captured here: say so once, and do not try in later phases."""
        self.use_graph = False
        self.reporter.note(f"no CUDA graph ({reason}): steps run kernel by kernel, more slowly")

    def _held_out(self, phase: Phase, split: TrainSplit) -> list[Tensor]:
        """Scores (n,) of each member's held-out images by the network that a phase judges."""
        run = self.run
        return [
            torch.from_numpy(own)
            for stack in run.stacks
            for own in own_scores(
                run.on_device(stack)[phase.judged].generator, split.held_out(run.members[stack])
            )
        ]
