"""Flat Adam, kernel and optimizer, against torch.optim.Adam."""

import copy
import pickle

import pytest
import torch
from cases import FLOAT32_FIRST, accumulator
from pkd_kernels import FlatAdam, adam, adam_prepare, adam_step, reference
from torch import Tensor, nn

from bench.profiling import measured

STACK = 3
SHAPES = ((3 * 4, 2, 3), (3 * 5,))  # each three models
BETAS = (0.5, 0.999)


def parameters(dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(*s, generator=generator).to(device, dtype)) for s in SHAPES]


def gradients(step: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    scale = 10.0 ** (step % 7 - 3)
    return [(scale * torch.randn(*s, generator=generator)).to(device, dtype) for s in SHAPES]


def members(tensors: list[Tensor]) -> list[list[Tensor]]:
    """The part of every tensor that belongs to each model."""
    return [[t.detach().chunk(STACK)[m].clone() for t in tensors] for m in range(STACK)]


@pytest.mark.parametrize("steps", [20, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=str
)
def test_steps_equal_torch(device, dtype, tolerance, steps):
    """Three models with different rates; the second one pauses for a twentieth of the steps."""
    rates = torch.tensor([0.002, 0.01, 0.0005])
    ours = FlatAdam(parameters(dtype, device), stack=STACK, lr=rates, betas=BETAS)
    theirs = [
        torch.optim.Adam([nn.Parameter(t) for t in part], lr=rate, betas=BETAS, foreach=False)
        for part, rate in zip(members(parameters(dtype, device)), rates.tolist(), strict=True)
    ]
    for step in range(steps):
        idle = 0.3 * steps <= step < 0.35 * steps
        ours.active[1] = not idle
        grads = gradients(step, dtype, device)
        ours.set_grads(grads)
        ours.step()
        for m, (optimizer, part) in enumerate(zip(theirs, members(grads), strict=True)):
            if idle and m == 1:
                continue
            for p, g in zip(optimizer.param_groups[0]["params"], part, strict=True):
                p.grad = g
            optimizer.step()
    assert ours.step_count.tolist() == [steps, 0.95 * steps, steps]
    for m, part in enumerate(members(ours.param_groups[0]["params"])):
        for p, other in zip(part, theirs[m].param_groups[0]["params"], strict=True):
            assert (p - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.parametrize("dtype", FLOAT32_FIRST[:3], ids=str)
@pytest.mark.parametrize(
    ("sizes", "stack", "factors"),
    [
        ((1,), 1, None),
        ((3000,), 1, None),
        ((1030, 7), 2, None),
        ((2,), 300, None),
        ((1030, 7, 5, 9), 1, (0.1, 0.1, 3.0, 0.1)),
        ((7, 5), 30, (1.0, 0.3)),
        ((1028, 3, 2000), 3, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("pad", [1, 8])
def test_kernel_equals_definition(device, sizes, stack, factors, pad, dtype):
    """With and without padding: pieces that are multiples of 4, and others."""
    lengths = [-(-stack * size // pad) * pad for size in sizes]
    count = sum(lengths)
    generator = torch.Generator().manual_seed(0)
    param, grad, avg = (torch.randn(count, generator=generator).to(device, dtype) for _ in range(3))
    state = [param, grad, avg, avg.square(), torch.full((stack,), 3.0, device=device)]
    rates = torch.linspace(0.01, 0.02, stack).to(device)
    state += [rates, (torch.arange(stack) % 3 != 1).to(device)]
    state.append(torch.empty(2, stack, device=device, dtype=accumulator(dtype)))
    copies = [t.clone() for t in state]
    arguments = {"sizes": sizes, "lengths": lengths, "eps": 1e-8, "lr_factors": factors}
    for op, prepare, values in (
        (adam_step, adam_prepare, state),
        (reference.adam_step, reference.adam_prepare, copies),
    ):
        prepare(*values[4:], betas=BETAS)
        op(*values, betas=BETAS, **arguments)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-7}[dtype]
    for actual, expected in zip(state[:4], copies[:4], strict=True):
        assert (actual - expected).abs().max() <= tolerance * expected.abs().max()
    assert torch.equal(state[4], copies[4])


@pytest.mark.parametrize("count", [0, 1, 7, 100_000])
@pytest.mark.parametrize("betas", [(0.5, 0.999), (0.0, 0.9)], ids=str)
def test_preparation_counts_and_corrects(device, count, betas):
    """In float64, also where the parameters are float32: 1 - 0.999 would lose digits."""
    stack = 2 * adam.MODELS + 1
    step = torch.full((stack,), float(count), device=device)
    lr = torch.linspace(1e-4, 1e-2, stack).to(device)
    active = (torch.arange(stack) % 2 == 0).to(device)
    corrections = torch.full((2, stack), torch.nan, device=device)
    adam_prepare(step, lr, active, corrections, betas=betas)
    assert torch.equal(step, count + active.float())
    expected = lr.double() / (1 - betas[0] ** (count + 1)), (1 - betas[1] ** (count + 1)) ** 0.5
    torch.testing.assert_close(corrections[0].double(), expected[0], rtol=1e-7, atol=0)
    roots = torch.full_like(lr, expected[1], dtype=torch.float64)
    torch.testing.assert_close(corrections[1].double(), roots, rtol=1e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_factors_equal_two_parameter_groups_of_torch(device, dtype):
    """Three models with different rates; the first parameter has a tenth of the model's rate."""
    rates, factors = torch.tensor([0.002, 0.01, 0.0005]), (0.1, 1.0)
    ours = FlatAdam(
        parameters(dtype, device), stack=STACK, lr=rates, lr_factors=factors, betas=BETAS
    )
    theirs = []
    for part, rate in zip(members(parameters(dtype, device)), rates.tolist(), strict=True):
        groups = [
            {"params": [nn.Parameter(t)], "lr": rate * factor}
            for t, factor in zip(part, factors, strict=True)
        ]
        theirs.append(torch.optim.Adam(groups, betas=BETAS, foreach=False))
    for step in range(20):
        grads = gradients(step, dtype, device)
        ours.set_grads(grads)
        ours.step()
        for optimizer, part in zip(theirs, members(grads), strict=True):
            for group, g in zip(optimizer.param_groups, part, strict=True):
                group["params"][0].grad = g
            optimizer.step()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6}[dtype]
    for optimizer, part in zip(theirs, members(ours.param_groups[0]["params"]), strict=True):
        for group, p in zip(optimizer.param_groups, part, strict=True):
            (other,) = group["params"]
            assert (p - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.parametrize("stack", [1, 30])
def test_factors_of_one_change_no_bit(device, stack):
    """Another factor of one parameter changes this parameter only."""

    def trained(factors: tuple[float, ...] | None) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        values = [torch.randn(stack * n, generator=generator).to(device) for n in (40, 7)]
        params = [nn.Parameter(v) for v in values]
        ours = FlatAdam(params, stack=stack, lr=0.01, lr_factors=factors, betas=BETAS)
        ours.set_grads([v.sin() for v in values])
        ours.step()
        return params

    plain, ones, halved = trained(None), trained((1.0, 1.0)), trained((1.0, 0.5))
    assert all(torch.equal(a, b) for a, b in zip(ones, plain, strict=True))
    assert torch.equal(halved[0], plain[0])
    assert (halved[1] != plain[1]).all()


def test_pieces_merge_only_with_the_same_model_and_factor():
    """Rows: begin, length, then model and 0, or the first element and the elements of a model."""
    cpu = torch.device("cpu")
    table, factors = adam._pieces((2, 3, 4, 2000), (8, 8, 8, 2000), (0.5, 0.5, 1.0, 1.0), 1, cpu)
    assert table.tolist() == [[0, 16, 0, 0], [16, 1024, 0, 0], [1040, 984, 0, 0]]
    assert factors.tolist() == [0.5, 1.0, 1.0]
    table, factors = adam._pieces((256, 3, 8), (512, 8, 16), (0.5, 1.0, 1.0), 2, cpu)
    assert table.tolist() == [[0, 256, 0, 0], [256, 256, 1, 0], [512, 8, 0, 3], [520, 16, 0, 8]]
    assert factors.tolist() == [0.5, 0.5, 1.0, 1.0]
    table, _ = adam._pieces((700, 4), (1400, 8), (1.0, 1.0), 2, cpu)
    assert table.tolist()[:2] == [[0, 700, 0, 0], [700, 700, 1, 0]]
    table, _ = adam._pieces((3, 256), (6, 512), (1.0, 1.0), 2, cpu)  # without padding
    assert table.tolist() == [[0, 6, 0, 3], [6, 256, 0, 256], [262, 256, 256, 256]]


def test_inactive_model_is_unchanged(device):
    ours = FlatAdam(parameters(device=device), stack=STACK, betas=BETAS)
    ours.set_grads(gradients(0, device=device))
    ours.step()
    before = {
        name: members([s[name] for s in ours.state.values()]) for name in ("exp_avg", "exp_avg_sq")
    }
    values = members(list(ours.state))
    ours.active[2] = False
    ours.set_grads([torch.full_like(g, torch.nan) for g in gradients(1, device=device)])
    ours.step()
    assert ours.step_count.tolist() == [2, 2, 1]
    after = members(list(ours.state))
    assert all(torch.equal(a, b) for a, b in zip(values[2], after[2], strict=True))
    assert all(t.isnan().all() for t in after[0])
    for name, parts in before.items():
        now = members([s[name] for s in ours.state.values()])[2]
        assert all(torch.equal(a, b) for a, b in zip(parts[2], now, strict=True))


@pytest.mark.parametrize("factors", [None, (0.1, 1.0)], ids=str)
def test_launches_and_the_same_bits_twice(device, factors):
    flats = []
    for _ in range(2):
        ours = FlatAdam(parameters(device=device), stack=STACK, lr_factors=factors)
        ours.set_grads(gradients(0, device=device))
        ours.step()  # the first step also copies the table of pieces to the device
        with measured() as traffic:
            ours.step()
        assert traffic.launches == ["adam_prepare", "adam_step"]
        with measured() as traffic:
            ours.update()  # prepared by `record_step`
        assert traffic.launches == ["adam_step"]
        flats.append(ours.flat)
    assert torch.equal(*flats)
    if device == "cpu":
        for name in ("param", "grad", "exp_avg", "exp_avg_sq"):
            assert traffic.loaded[f"adam_step.{name}_ptr"] == ours.flat.numel()
        for name in ("param", "exp_avg", "exp_avg_sq"):
            assert traffic.stored[f"adam_step.{name}_ptr"] == ours.flat.numel()
        assert not any("grad" in name for name in traffic.stored)


def test_parameters_and_gradients_are_views_of_the_flat_buffers(device):
    params = parameters(device=device)
    values = [p.detach().clone() for p in params]
    ours = FlatAdam(params, stack=STACK)
    assert all(torch.equal(p, v) for p, v in zip(params, values, strict=True))
    assert ours.lengths == (72, 16)
    assert all(p.data_ptr() % 16 == p.grad.data_ptr() % 16 == 0 for p in params)
    assert torch.equal(ours.flat, torch.cat([*(v.reshape(-1) for v in values), ours.flat[-1:]]))
    for _ in range(2):  # backward adds into the views
        sum(p.square().sum() for p in params).backward()
    assert torch.allclose(ours.grad, 4 * ours.flat)
    ours.zero_grad()
    assert not ours.grad.any()
    assert all(p.grad is not None and p.grad._base is ours.grad for p in params)
    ours.grad.fill_(1)
    assert all((p.grad == 1).all() for p in params)


def test_gradients_in_the_buffer_are_not_copied(device):
    ours = FlatAdam(parameters(device=device), stack=STACK)
    first, second = gradients(0, device=device)
    with measured() as traffic:
        ours.set_grads([first, second])
        assert traffic.launches == ["aten._foreach_copy_"]
        ours.set_grads([None, None])
        assert len(traffic.launches) == 1
        ours.set_grads([None, 2 * second])
        assert traffic.launches[1:] == ["aten.mul", "aten._foreach_copy_"]
    expected = [first.reshape(-1), 2 * second.reshape(-1), ours.grad.new_zeros(1)]
    assert torch.equal(ours.grad, torch.cat(expected))
    with pytest.raises(ValueError, match="shorter"):
        ours.set_grads([None])


class WritesMainGrad(torch.autograd.Function):
    """weight * x; the gradient of the weight is written to `main_grad`."""

    @staticmethod
    def forward(ctx, weight, x):
        ctx.weight = weight
        ctx.save_for_backward(x)
        return weight * x

    @staticmethod
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        if ctx.weight.main_grad is None:
            return upstream * x, None
        torch.mul(upstream, x, out=ctx.weight.main_grad)
        return None, None


def test_main_grad_receives_the_gradient_of_an_op(device):
    """One of two parameters uses it; two steps, because the second gradient replaces the first."""

    def trained(main_grad: bool) -> FlatAdam:
        params = parameters(device=device)
        ours = FlatAdam(params, stack=STACK, main_grad=main_grad)
        for step in range(2):
            x, y = gradients(step, device=device)
            loss = WritesMainGrad.apply(params[0], x).square().sum() + (params[1] * y).sum()
            grads = torch.autograd.grad(loss, params, allow_unused=True)
            assert (grads[0] is None) == main_grad
            assert grads[1] is not None
            ours.set_grads(grads)
            ours.step()
        return ours

    ours, plain = trained(True), trained(False)
    assert torch.equal(ours.grad, plain.grad)
    assert torch.equal(ours.flat, plain.flat)


def test_main_grad_belongs_to_the_latest_optimizer(device):
    params = parameters(device=device)
    first = FlatAdam(params, stack=STACK, main_grad=True)
    assert all(p.main_grad is p.grad and p.grad._base is first.grad for p in params)
    FlatAdam(params, stack=STACK)
    assert all(p.main_grad is None for p in params)


def test_replaced_gradient_raises(device):
    params = parameters(device=device)
    ours = FlatAdam(params, stack=STACK)
    params[1].grad = None
    with pytest.raises(RuntimeError, match="replaced"):
        ours.step()


def test_parameters_outside_the_buffer_raise(device):
    """A second group, a copy, a converted module, a parameter that M does not divide, factors."""
    module = nn.Linear(4, 3, device=device)
    ours = FlatAdam(module.parameters())
    with pytest.raises(ValueError, match="one parameter group"):
        ours.add_param_group({"params": [nn.Parameter(torch.zeros(3, device=device))]})
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied"):
            copied(ours)
    ours.step()
    module.double()
    with pytest.raises(RuntimeError, match="left the flat buffer"):
        ours.step()
    with pytest.raises(ValueError, match="does not fit 2 models"):
        FlatAdam([nn.Parameter(torch.zeros(3, device=device))], stack=2)
    with pytest.raises(ValueError, match="2 factors do not fit 1 parameters"):
        FlatAdam([nn.Parameter(torch.zeros(3, device=device))], lr_factors=(0.1, 1.0))


def test_torch_scheduler_changes_the_rate(device):
    ours = FlatAdam([nn.Parameter(torch.zeros(3, device=device))], lr=0.8)
    scheduler = torch.optim.lr_scheduler.StepLR(ours, step_size=1, gamma=0.5)
    ours.step()
    scheduler.step()
    torch.testing.assert_close(ours.param_groups[0]["lr"], torch.tensor([0.4], device=device))


def test_closure(device):
    params = parameters(device=device)
    ours = FlatAdam(params, stack=STACK)

    def closure():
        ours.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    losses = [ours.step(closure).item() for _ in range(20)]
    assert losses == sorted(losses, reverse=True)


def test_state_dict_resumes_in_place(device):
    def trained(steps, optimizer):
        for step in steps:
            optimizer.set_grads(gradients(step, device=device))
            optimizer.step()
        return optimizer

    whole = trained(range(6), FlatAdam(parameters(device=device), stack=STACK, lr=0.01))
    half = trained(range(3), FlatAdam(parameters(device=device), stack=STACK, lr=0.01))
    saved = copy.deepcopy(half.state_dict())
    assert set(saved) == {"state", "param_groups"}
    assert set(saved["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}

    resumed = FlatAdam(parameters(device=device), stack=STACK, betas=(0.1, 0.2))
    resumed.flat.copy_(half.flat)
    buffers = (resumed.flat, resumed.exp_avg, resumed.exp_avg_sq, resumed.step_count)
    addresses = [t.data_ptr() for t in buffers]
    resumed.load_state_dict(saved)
    trained(range(3, 6), resumed)
    assert torch.equal(resumed.flat, whole.flat)
    assert [t.data_ptr() for t in buffers] == addresses
    assert resumed.param_groups[0]["betas"] == half.param_groups[0]["betas"]


def test_state_dict_of_another_shape_raises(device):
    ours = FlatAdam(parameters(device=device), stack=STACK)
    other = FlatAdam(parameters(device=device), stack=1)
    with pytest.raises(ValueError, match="has shape"):
        ours.load_state_dict(other.state_dict())
    fewer = FlatAdam(parameters(device=device)[:1], stack=STACK)
    with pytest.raises(ValueError, match="1 parameters saved, not 2"):
        ours.load_state_dict(fewer.state_dict())


@pytest.mark.parametrize("op", [adam_step, reference.adam_step], ids=["kernel", "definition"])
def test_buffers_that_do_not_fit_raise(device, op):
    ours = FlatAdam(parameters(device=device), stack=STACK)
    model = (ours.step_count, ours.param_groups[0]["lr"], ours.active, ours.corrections)
    moments = (ours.exp_avg, ours.exp_avg_sq)
    with pytest.raises(ValueError, match="do not fit"):
        op(ours.flat, ours.grad, *moments, *model, sizes=(5,), betas=BETAS, eps=1e-8)
    with pytest.raises(ValueError, match="do not fit"):
        op(
            *(ours.flat, ours.grad, *moments, *model),
            sizes=ours.sizes,
            lengths=(64, 24),
            betas=BETAS,
            eps=1e-8,
        )
    with pytest.raises(ValueError, match=r"corrections have shape \(2, 1\), not \(2, 3\)"):
        op(
            *(ours.flat, ours.grad, *moments, *model[:3], torch.empty(2, 1, device=device)),
            sizes=ours.sizes,
            lengths=ours.lengths,
            betas=BETAS,
            eps=1e-8,
        )
    with pytest.raises(ValueError, match="1 factors do not fit 2 parameters"):
        op(
            *(ours.flat, ours.grad, *moments, *model),
            sizes=ours.sizes,
            lengths=ours.lengths,
            betas=BETAS,
            eps=1e-8,
            lr_factors=(1.0,),
        )
    with pytest.raises(ValueError, match="contiguous"):
        op(ours.flat, ours.grad[1:], *moments, *model, sizes=ours.sizes, betas=BETAS, eps=1e-8)
