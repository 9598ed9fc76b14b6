"""Record a training step on the device: its losses, learning rates and active models, one launch.

With t the number of the step, on the device, for every model m

    history[t, m] = its losses        rate_m = rates[t, m]        active_m = t < steps_m

and Adam's preparation (`adam`), then t = t + 1. This is a few numbers for each model, so one
program does all of it: t has one writer, and a barrier separates the reads from the write. A step
after the last one, as a replay of a CUDA graph too many would take, records nothing and leaves all
models inactive.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from pkd_kernels.adam import log2, prepare_models
from pkd_kernels.operators import custom_operator
from pkd_kernels.reference import TERMS

MODELS, NUM_WARPS = 32, 4
COLUMNS = 2 + len(TERMS)  # of the history, for one network


@triton.jit
def _store(row_ptr, b_generator, b_discriminator, b_terms, k, mask, terms_mask):
    """Store the losses of one network."""
    tl.store(row_ptr, b_generator, mask=mask)
    tl.store(row_ptr + 1, b_discriminator, mask=mask)
    tl.store(row_ptr[:, None] + 2 + k, b_terms, mask=terms_mask)


@triton.jit(
    do_not_specialize=["stride0_m", "stride0_k", "stride1_m", "stride1_k", "stack", "length"]
)
def record_step_kernel(
    history_ptr,
    counter_ptr,
    rate_ptr,
    active_ptr,
    step_ptr,
    corrections_ptr,
    rates_ptr,
    steps_ptr,
    generator0_ptr,
    discriminator0_ptr,
    terms0_ptr,
    generator1_ptr,
    discriminator1_ptr,
    terms1_ptr,
    stride0_m,
    stride0_k,
    stride1_m,
    stride1_k,
    stack,
    length,
    NETWORKS: tl.constexpr,
    LOG2_BETA1: tl.constexpr,
    LOG2_BETA2: tl.constexpr,
    TERMS: tl.constexpr,
    MODELS: tl.constexpr,
):
    """Record the losses of one or two networks of all models, and increment the step."""
    step = tl.load(counter_ptr)
    row = tl.minimum(step, length - 1)
    k = tl.arange(0, 8)[None, :]  # [1, 8]
    for first in range(0, stack, MODELS):
        m = first + tl.arange(0, MODELS)  # [MODELS]
        mask = m < stack
        terms_mask = mask[:, None] & (k < TERMS)  # [MODELS, 8]
        # All loads come before the first store: no load waits for a store.
        b_generator0 = tl.load(generator0_ptr + m, mask=mask)
        b_discriminator0 = tl.load(discriminator0_ptr + m, mask=mask)
        b_terms0 = tl.load(terms0_ptr + m[:, None] * stride0_m + k * stride0_k, mask=terms_mask)
        if NETWORKS == 2:
            b_generator1 = tl.load(generator1_ptr + m, mask=mask)
            b_discriminator1 = tl.load(discriminator1_ptr + m, mask=mask)
            b_terms1 = tl.load(terms1_ptr + m[:, None] * stride1_m + k * stride1_k, mask=terms_mask)
        b_steps = tl.load(steps_ptr + m, mask=mask)
        b_rate = tl.load(rates_ptr + row * stack + m, mask=mask, other=0)
        b_active = step < b_steps
        row_ptr = history_ptr + (row * stack + m) * NETWORKS * (2 + TERMS)  # [MODELS]
        recorded = mask & (step < length)
        terms_mask &= step < length
        _store(row_ptr, b_generator0, b_discriminator0, b_terms0, k, recorded, terms_mask)
        if NETWORKS == 2:
            row_ptr += 2 + TERMS
            _store(row_ptr, b_generator1, b_discriminator1, b_terms1, k, recorded, terms_mask)
        tl.store(active_ptr + m, b_active, mask=mask)
        tl.store(rate_ptr + m, b_rate, mask=mask)
        prepare_models(
            m, mask, b_active, b_rate, step_ptr, corrections_ptr, stack, LOG2_BETA1, LOG2_BETA2
        )
    tl.debug_barrier()  # every thread has read the step
    tl.store(counter_ptr, step + 1)


@custom_operator(
    "record_step",
    fake=lambda *args: None,
    mutates=("history", "counter", "rate", "active", "step", "corrections"),
)
def launch(
    losses: list[Tensor],
    rates: Tensor,
    steps: Tensor,
    history: Tensor,
    counter: Tensor,
    rate: Tensor,
    active: Tensor,
    step: Tensor,
    corrections: Tensor,
    betas: list[float],
) -> None:
    """Write the last six tensors in place; `losses` has three tensors for each network."""
    networks = len(losses) // 3
    first, last = losses[:3], losses[-3:]  # the same for one network, which ignores `last`
    record_step_kernel[(1,)](
        history,
        counter,
        rate,
        active,
        step,
        corrections,
        rates,
        steps,
        *first,
        *last,
        *first[2].stride(),
        *last[2].stride(),
        len(steps),
        len(rates),
        NETWORKS=networks,
        LOG2_BETA1=log2(betas[0]),
        LOG2_BETA2=log2(betas[1]),
        TERMS=len(TERMS),
        MODELS=MODELS,
        num_warps=NUM_WARPS,
        enable_fp_fusion=True,
    )


def _check(
    losses: Sequence[Sequence[Tensor]],
    rates: Tensor,
    steps: Tensor,
    history: Tensor,
    counter: Tensor,
    rate: Tensor,
    active: Tensor,
    step: Tensor,
    corrections: Tensor,
) -> None:
    if len(losses) not in (1, 2):
        raise ValueError(f"record_step takes the losses of 1 or 2 networks, not {len(losses)}")
    length, m = rates.shape
    shapes = {"history": (length, m, len(losses), COLUMNS), "counter": (1,)}
    shapes |= dict.fromkeys(("steps", "rate", "active", "step"), (m,)) | {"corrections": (2, m)}
    tensors = {"history": history, "counter": counter, "steps": steps}
    tensors |= {"rate": rate, "active": active, "step": step, "corrections": corrections}
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, not {shape}")
    for parts in losses:
        if [t.shape for t in parts] != [(m,), (m,), (m, len(TERMS))]:
            raise ValueError(f"losses have shapes {[tuple(t.shape) for t in parts]} for M = {m}")
    contiguous = (rates, *tensors.values(), *(t for parts in losses for t in parts[:2]))
    if not all(t.is_contiguous() for t in contiguous):
        raise ValueError(
            "all tensors but the terms must be contiguous: the kernel uses them in place"
        )
    if counter.dtype != torch.int64 or steps.dtype != torch.int64 or active.dtype != torch.bool:
        raise ValueError("counter and steps must be int64, active must be bool")


def record_step(
    losses: Sequence[Sequence[Tensor]],
    rates: Tensor,
    steps: Tensor,
    *,
    history: Tensor,
    counter: Tensor,
    rate: Tensor,
    active: Tensor,
    step: Tensor,
    corrections: Tensor,
    betas: tuple[float, float],
) -> None:
    """`reference.record_step` in one launch.

    Raises:
        ValueError: a tensor is not contiguous, or has another shape or type than required.
    """
    written = (history, counter, rate, active, step, corrections)
    _check(losses, rates, steps, *written)
    launch([t for parts in losses for t in parts], rates, steps, *written, list(betas))
