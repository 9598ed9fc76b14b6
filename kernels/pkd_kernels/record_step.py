"""What a training step leaves to the host and to Adam, and on to the next step: one launch.

With t the number of the step, on the device, for every model m

    history[t, m] = its losses        rate_m = rates[t, m]        active_m = t < steps_m

and then t = t + 1. All of it is a few numbers a model, so one program does it: t has one writer,
and a barrier is enough for all to have read it before. Whether step t exists is not checked: that
would make the host wait.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from pkd_kernels.custom_op import opaque
from pkd_kernels.reference import TERMS

MODELS, NUM_WARPS = 32, 4
COLUMNS = 2 + len(TERMS)  # of a network in the history


@triton.jit
def _store(row_ptr, b_generator, b_discriminator, b_terms, k, inside, shown):
    tl.store(row_ptr, b_generator, mask=inside)
    tl.store(row_ptr + 1, b_discriminator, mask=inside)
    tl.store(row_ptr[:, None] + 2 + k, b_terms, mask=shown)


@triton.jit(do_not_specialize=["stride0_m", "stride0_k", "stride1_m", "stride1_k", "stack"])
def _kernel(
    history_ptr,
    counter_ptr,
    rate_ptr,
    active_ptr,
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
    NETWORKS: tl.constexpr,
    TERMS: tl.constexpr,
    MODELS: tl.constexpr,
):
    step = tl.load(counter_ptr)
    k = tl.arange(0, 8)[None, :]  # [1, 8]
    for first in range(0, stack, MODELS):
        m = first + tl.arange(0, MODELS)  # [MODELS]
        inside = m < stack
        shown = inside[:, None] & (k < TERMS)  # [MODELS, 8]
        # All loads stand before the first store, which waits for what it stores.
        b_generator0 = tl.load(generator0_ptr + m, mask=inside)
        b_discriminator0 = tl.load(discriminator0_ptr + m, mask=inside)
        b_terms0 = tl.load(terms0_ptr + m[:, None] * stride0_m + k * stride0_k, mask=shown)
        if NETWORKS == 2:
            b_generator1 = tl.load(generator1_ptr + m, mask=inside)
            b_discriminator1 = tl.load(discriminator1_ptr + m, mask=inside)
            b_terms1 = tl.load(terms1_ptr + m[:, None] * stride1_m + k * stride1_k, mask=shown)
        b_steps = tl.load(steps_ptr + m, mask=inside)
        b_rate = tl.load(rates_ptr + step * stack + m, mask=inside)
        row_ptr = history_ptr + (step * stack + m) * NETWORKS * (2 + TERMS)  # [MODELS]
        _store(row_ptr, b_generator0, b_discriminator0, b_terms0, k, inside, shown)
        if NETWORKS == 2:
            row_ptr += 2 + TERMS
            _store(row_ptr, b_generator1, b_discriminator1, b_terms1, k, inside, shown)
        tl.store(active_ptr + m, step < b_steps, mask=inside)
        tl.store(rate_ptr + m, b_rate, mask=inside)
    tl.debug_barrier()  # every thread has read the step
    tl.store(counter_ptr, step + 1)


@opaque(fake=lambda *args: None, mutates=("history", "counter", "rate", "active"))
def launch(
    losses: list[Tensor],
    rates: Tensor,
    steps: Tensor,
    history: Tensor,
    counter: Tensor,
    rate: Tensor,
    active: Tensor,
) -> None:
    """Three losses a network, one network behind the other; the last four are written in place."""
    networks = len(losses) // 3
    first, last = losses[:3], losses[-3:]  # of one network the same; the kernel leaves `last` alone
    _kernel[(1,)](
        history,
        counter,
        rate,
        active,
        rates,
        steps,
        *first,
        *last,
        *first[2].stride(),
        *last[2].stride(),
        len(steps),
        NETWORKS=networks,
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
) -> None:
    if len(losses) not in (1, 2):
        raise ValueError(f"record_step takes the losses of 1 or 2 networks, not {len(losses)}")
    length, m = rates.shape
    shapes = {"history": (length, m, len(losses), COLUMNS), "counter": (1,)}
    shapes |= dict.fromkeys(("steps", "rate", "active"), (m,))
    found = {"history": history, "counter": counter, "steps": steps, "rate": rate, "active": active}
    for name, shape in shapes.items():
        if found[name].shape != shape:
            raise ValueError(f"{name} has shape {tuple(found[name].shape)}, not {shape}")
    for parts in losses:
        if [t.shape for t in parts] != [(m,), (m,), (m, len(TERMS))]:
            raise ValueError(f"losses have shapes {[tuple(t.shape) for t in parts]} for M = {m}")
    plain = (rates, *found.values(), *(t for parts in losses for t in parts[:2]))
    if not all(t.is_contiguous() for t in plain):
        raise ValueError("all but the terms must be contiguous: they are used where they lie")
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
) -> None:
    """`reference.record_step` in one launch; whether the step exists is not checked.

    Raises:
        ValueError: a tensor is not contiguous, or not of the shape and type that is asked for.
    """
    _check(losses, rates, steps, history, counter, rate, active)
    launch([t for parts in losses for t in parts], rates, steps, history, counter, rate, active)
