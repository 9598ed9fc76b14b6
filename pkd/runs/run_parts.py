"""Score the images of a run, and load the scores of its finished phases, as parts of scores."""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from pkd.models.ganomaly import GAN
from pkd.runs.run import Run
from pkd.runs.teachers import with_parts
from pkd.scoring.novelty import score_parts, score_parts_per_member
from pkd.scoring.score import Parts
from pkd.training.structures import Phase
from pkd.utils.errors import RESTORE, CheckpointError, DivergenceError


def compute_stack_parts(
    run: Run,
    networks: dict[str, GAN],
    stack: slice,
    network: str,
    stride: int = 1,
    on_batch_end: Callable[[], None] = lambda: None,
    held_out: bool = True,
) -> Parts:
    """Score test and held-out images by the members of a stack.

    Args:
        run: the run.
        networks: networks of the stack, on the device.
        stack: the stack.
        network: name of the network that scores.
        stride: only every `stride`-th test image is scored.
        on_batch_end: called after each batch; may raise to stop.
        held_out: score the held-out images too; without them their parts are empty.

    Raises:
        DivergenceError: a score is not finite; the message names the member.
    """
    images, members = run.test_images[::stride], run.members[stack]
    generator = networks[network].generator
    test = score_parts(generator, images, len(members), on_batch_end)
    normal = [test[:0, k] for k in range(len(members))]
    if held_out:
        normal = score_parts_per_member(generator, run.data.held_out_images(members), on_batch_end)
    for k, member in enumerate(members):
        if not (np.isfinite(test[:, k]).all() and np.isfinite(normal[k]).all()):
            raise DivergenceError(
                f"scores of the {network} of {member} are not finite: train again with a lower `lr`"
            )
    return Parts(test, normal)


def compute_parts(run: Run, network: str) -> Parts:
    """Score test and held-out images by all members; DivergenceError as `compute_stack_parts`."""
    with run.precision():
        parts = [
            compute_stack_parts(run, run.on_device(stack), stack, network) for stack in run.stacks
        ]
    held_out = [array for part in parts for array in part.held_out]
    return Parts(np.concatenate([part.test for part in parts], 1), held_out)


def score_held_out(run: Run, network: str) -> list[np.ndarray]:
    """Parts (n, 3) of each member's held-out images, by the current network."""
    return [
        parts
        for stack in run.stacks
        for parts in score_parts_per_member(
            run.on_device(stack)[network].generator, run.data.held_out_images(run.members[stack])
        )
    ]


def evaluate(run: Run, network: str) -> list[float]:
    """AUC of each member on the test split; DivergenceError as `compute_stack_parts`."""
    parts = compute_parts(run, network)
    return parts.auc(run.score_rule, run.dataset.test_labels, run.members)


def parts_tensors(
    test: Collection[Tensor], held_out: Sequence[np.ndarray], stacks: int
) -> dict[str, Tensor]:
    """Parts as tensors of a checkpoint.

    Args:
        test: (T, M, 3) of the test split by each stack. Of the stacks that an earlier version
            trained it may have (T, M, 1), or nothing.
        held_out: (n, 3) of each member.
        stacks: number of stacks.
    """
    tensors = {f"held_out.{k}": torch.from_numpy(array) for k, array in enumerate(held_out)}
    if len(test) == stacks:
        common = min(tensor.shape[2] for tensor in test)
        tensors["test_scores"] = torch.cat([tensor[..., :common] for tensor in test], 1)
    return tensors


def load_stack_tensors(run: Run) -> dict[int, Tensor]:
    """Parts (T, M, 3) of the test split of the stacks that finished the current phase, by stack."""
    name, prefix = run.folder.progress.tensors, "test_scores."
    if not name:
        return {}
    tensors = run.folder.load_tensors(name, prefix)
    return {int(key.removeprefix(prefix)): with_parts(tensors[key], 2) for key in tensors}


def load_parts(run: Run, phase: Phase) -> Parts:
    """Load the parts that were computed at the end of a finished phase.

    Checkpoints of earlier versions have no reconstruction part, and those of early versions no
    scores of the test split, or of held-out images: then they are computed.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    name = f"{phase.name}.safetensors"
    path, count = run.folder.checkpoints / name, len(run.members)
    test = run.folder.load_tensors(name, "test_scores").get("test_scores")
    held_out = run.folder.load_tensors(name, "held_out.")
    if test is None or not (held_out or run.data.held_out.any()):
        run.load_phase(phase)
        return compute_parts(run, phase.network)
    if test.shape[:2] != (len(run.test_images), count):
        raise CheckpointError(
            f"checkpoint {path} has test scores of shape {tuple(test.shape)}, which does not fit "
            f"the run: {RESTORE}"
        )
    if len(held_out) != count:
        raise CheckpointError(
            f"checkpoint {path} has scores of held-out images for {len(held_out)} of {count} "
            f"models: {RESTORE}"
        )
    return parse_parts(held_out | {"test_scores": test})


def parse_parts(tensors: dict[str, Tensor]) -> Parts:
    """Parts from the tensors `test_scores` and `held_out.<k>` of a checkpoint."""
    held_out = [with_parts(tensors[f"held_out.{k}"], 1).numpy() for k in range(len(tensors) - 1)]
    return Parts(with_parts(tensors["test_scores"], 2).numpy(), held_out)
