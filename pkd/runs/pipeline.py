"""Train a run: teacher, step 1 and step 2 (Algorithm 1), then results."""

from dataclasses import replace
from typing import Any

from pkd.models.ganomaly import load_networks, network_tensors
from pkd.runs.plots import training_curves_png
from pkd.runs.results import build_results
from pkd.runs.run import Run
from pkd.runs.run_parts import load_stack_tensors, parse_parts, parts_tensors, score_held_out
from pkd.runs.stack_loop import StackLoop
from pkd.runs.teachers import weights_sha256
from pkd.training.callbacks import Callback


def train(run: Run, callback: Callback) -> dict[str, Any]:
    """Train the remaining phases of a run; write and return its results.

    Args:
        run: created, or resumed after an interruption.
        callback: hooks of the training.

    Raises:
        TrainingInterrupted: a callback stopped the training, after a checkpoint.
        PkdError: a loss is not finite, or a file cannot be written.
    """
    folder = run.folder
    for phase in run.phases[: folder.progress.phase]:
        run.load_phase(phase)
    if folder.progress.phase == len(run.phases):
        results = folder.results()
        if results is not None:  # keep the hardware and versions of the machine that trained
            return results
    else:
        run.config.training_device()  # the run may have started on another machine
        loop = PhaseLoop(run, callback)
        with run.precision():
            for number in range(folder.progress.phase, len(run.phases)):
                if run.is_taken(run.phases[number]):
                    take_teachers(run)
                else:
                    loop.train_phase(number)
    results = build_results(run, folder.progress.auc)
    folder.write_results(results, training_curves_png(folder.metrics, run.config.dataset))
    return results


def take_teachers(run: Run) -> None:
    """Finish the teacher's phase with the teachers of other runs."""
    phase, teachers, folder = run.phases[0], run.teachers, run.folder
    tensors, scores = teachers.tensors(), teachers.scores()
    auc = parse_parts(scores).auc(run.score_rule, run.dataset.test_labels, run.members)
    load_networks(run.trained(phase), tensors)
    progress = replace(folder.progress, phase=1, auc={phase.name: auc})
    progress.teacher_sha256 = weights_sha256(tensors, len(run.members))
    folder.metrics.extend(teachers.metrics(phase.epochs))
    folder.save_phase(phase.name, scores, progress)


class PhaseLoop:
    """Train the phases of a run, each stack after stack."""

    def __init__(self, run: Run, callback: Callback):
        self.run, self.callback = run, callback
        self.use_graph = run.config.graph
        if len(run.stacks) > 1:
            sizes = " + ".join(str(stack.stop - stack.start) for stack in run.stacks)
            callback.on_message(
                f"{len(run.members)} models in stacks of {sizes}, one after the other"
            )

    def train_phase(self, number: int) -> None:
        """Train the remaining stacks of a phase, then score the held-out images."""
        run, phase = self.run, self.run.phases[number]
        scores = load_stack_tensors(run)
        for index in range(run.folder.progress.stack, len(run.stacks)):
            loop = StackLoop(
                run, index, scores, self.callback, self.use_graph, self._on_graph_failure
            )
            scores = loop.train()
        progress = loop.progress
        progress.phase, progress.stack, progress.epoch = number + 1, 0, 0
        progress.auc = progress.auc | {phase.name: run.folder.metrics[-1]["auc"]}
        tensors = network_tensors(run.trained(phase)) | parts_tensors(
            [scores[k] for k in sorted(scores)],
            score_held_out(run, phase.network),
            len(run.stacks),
        )
        run.folder.save_phase(phase.name, tensors, progress)

    def _on_graph_failure(self, reason: str) -> None:
        """Report that steps cannot be captured here, and do not try again in later phases."""
        self.use_graph = False
        self.callback.on_message(
            f"no CUDA graph ({reason}): each kernel is launched by itself, which is slower"
        )
