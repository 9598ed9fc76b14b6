"""The inputs of a step: the kernel equals the definition in every bit."""

import pytest
import torch
from pkd_kernels import gather, reference
from pkd_kernels.indexing import SOURCES
from torch import Tensor

from bench.profiling import measured

STEPS, BATCH, STACK = 3, 2, 4
FIRST = (0, 7, 0, 3)  # the first and third model share their images
ROWS = 12
Sources = list[tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def default_dtype():
    yield
    torch.set_default_dtype(torch.float32)


def rows(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, generator=generator, dtype=dtype)
    return torch.randn(*shape, generator=generator).to(dtype)


def case(*tables: Tensor, batch: int = BATCH, first: tuple[int, ...] = FIRST):
    """Sources, order and step: the second step of three, rows that every model has."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randint(0, 5, (STEPS, batch, len(first)), generator=generator)
    sources = [(t, (torch.tensor(first) + k) % (ROWS - 4)) for k, t in enumerate(tables)]
    return sources, order, torch.tensor([1])


def to(device: str, sources: Sources, order: Tensor, step: Tensor):
    moved = [(table.to(device), first.to(device)) for table, first in sources]
    return moved, order.to(device), step.to(device)


def assert_equals_definition(device: str, sources: Sources, order: Tensor, step: Tensor) -> None:
    """On the CPU: there PyTorch divides by 127.5, where on a GPU it multiplies by the inverse."""
    actual = gather(*to(device, sources, order, step))
    expected = reference.gather(sources, order, step)
    assert isinstance(actual, tuple)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.cpu(), b)


@pytest.mark.parametrize(
    "shape",
    [(1,), (7,), (1, 1, 1), (3, 5, 7), (1, 32, 32), (3, 32, 32), (256,), (513,), (1025,)],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_equals_definition(device, shape, dtype):
    assert_equals_definition(device, *case(rows(ROWS, *shape, dtype=dtype)))


@pytest.mark.parametrize("default", [torch.float32, torch.float64], ids=str)
def test_every_grey_level_has_the_default_type(device, default):
    torch.set_default_dtype(default)
    levels = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    order = torch.arange(4).view(1, 4, 1)
    sources = [(levels, torch.tensor([0]))]
    (actual,) = gather(*to(device, sources, order, torch.tensor([0])))
    assert actual.dtype == default
    assert (actual.min(), actual.max()) == (-1, 1)
    assert_equals_definition(device, sources, order, torch.tensor([0]))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
def test_images_and_teacher_outputs_together(device, dtype):
    """Sources of different sizes and first rows; the outputs of a teacher keep their type."""
    image, latent = (3, 9, 11), (37,)
    tables = [rows(ROWS, *image, dtype=torch.uint8)]
    tables += [rows(ROWS, *shape, dtype=dtype) for shape in (latent, image, latent)]
    assert_equals_definition(device, *case(*tables))


@pytest.mark.parametrize("count", range(1, SOURCES + 1))
@pytest.mark.parametrize(("batch", "stack"), [(1, 1), (1, 30), (16, 3)])
def test_one_launch_for_any_number_of_sources(device, count, batch, stack):
    tables = [rows(ROWS, 5 + k) for k in range(count)]
    sources, order, step = to(device, *case(*tables, batch=batch, first=(0,) * stack))
    with measured() as traffic:
        actual = gather(sources, order, step)
    assert traffic.launches == ["gather"]
    assert [t.shape for t in actual] == [(batch, stack * (5 + k)) for k in range(count)]
    if device == "cpu" and count == SOURCES:
        for k, t in enumerate(actual):
            assert traffic.loaded[f"gather.rows{k}_ptr"] == t.numel()
            assert traffic.stored[f"gather.out{k}_ptr"] == t.numel()


@pytest.mark.parametrize("at", range(STEPS))
def test_the_step_is_read_on_the_device(device, at):
    sources, order, step = case(rows(ROWS, 6))
    step.fill_(at)
    assert_equals_definition(device, sources, order, step)
    (actual,) = gather(*to(device, sources, order, step))
    (table, first), *_ = sources
    expected = table[(first + order[at]).flatten()].view(BATCH, -1)
    assert torch.equal(actual.cpu(), expected)


def test_after_the_last_step_the_kernel_reads_the_last(device):
    """Not the memory after the order, which here has rows that do not exist."""
    sources, order, step = to(device, *case(rows(ROWS, 6)))
    longer = torch.cat([order, torch.full_like(order, 2**40)])
    (expected,) = gather(sources, order, step.fill_(STEPS - 1))
    for at in (STEPS, STEPS + 1):
        (actual,) = gather(sources, longer[:STEPS], step.fill_(at))
        assert torch.equal(actual, expected)


def test_members_of_one_class_share_its_rows(device):
    """Equal first row and order: equal images, different from the others'."""
    sources, order, step = case(rows(ROWS, 3, 4, 4, dtype=torch.uint8))
    order[:, :, 2] = order[:, :, 0]
    (actual,) = gather(*to(device, sources, order, step))
    members = actual.view(BATCH, STACK, 3, 4, 4)
    assert torch.equal(members[:, 0], members[:, 2])
    assert not torch.equal(members[:, 0], members[:, 1])


def test_outputs_are_written_inputs_unchanged_runs_equal(device, monkeypatch):
    tables = rows(ROWS, 3, 5, 7, dtype=torch.uint8), rows(ROWS, 37)
    sources, order, step = to(device, *case(*tables))
    inputs = [*(t for source in sources for t in source), order, step]
    before, versions = [t.clone() for t in inputs], [t._version for t in inputs]
    first = gather(sources, order, step)
    empty = torch.empty
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
        second = gather(sources, order, step)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    assert [t._version for t in inputs] == versions


@pytest.mark.gpu
def test_rows_beyond_2_to_the_31_elements():
    """The last image of a data set of more than 2**31 pixels."""
    table = torch.zeros(2**31 // 3072 + 2, 3, 32, 32, dtype=torch.uint8, device="cuda")
    table[-1] = 255
    order = torch.full((1, 1, 1), len(table) - 1, device="cuda")
    zero = torch.zeros(1, dtype=torch.int64, device="cuda")
    (actual,) = gather([(table, zero)], order, zero)
    assert torch.equal(actual, torch.ones_like(actual))


@pytest.mark.gpu
def test_a_graph_reads_the_step_of_its_replay():
    sources, order, step = to("cuda", *case(rows(ROWS, 37)))
    gather(sources, order, step)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (actual,) = gather(sources, order, step)
    for at in range(STEPS):
        step.fill_(at)
        graph.replay()
        assert torch.equal(actual, reference.gather(sources, order, step)[0])


def test_compiles_into_one_graph(device):
    sources, order, step = to(device, *case(rows(ROWS, 3, 4, 4, dtype=torch.uint8), rows(ROWS, 5)))

    def read(order, step):
        images, latents = gather(sources, order, step)
        return images * 2, latents + 1

    compiled = torch.compile(read, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(order, step), read(order, step), strict=True):
        assert torch.equal(a, b)


def test_invalid_inputs_raise_value_error(device):
    sources, order, step = to(device, *case(rows(ROWS, 6, 4)))
    ((table, first),) = sources
    with pytest.raises(ValueError, match="1 to 4 sources, not 5"):
        gather(sources * 5, order, step)
    with pytest.raises(ValueError, match=r"not \(steps, N, M\) and \(1,\)"):
        gather(sources, order, step[0])
    with pytest.raises(ValueError, match=r"first has shape \(3,\), not \(4,\)"):
        gather([(table, first[:3])], order, step)
    with pytest.raises(ValueError, match="contiguous: the kernel reads them in place"):
        gather([(table.transpose(1, 2), first)], order, step)
    with pytest.raises(ValueError, match="must be int64"):
        gather(sources, order.int(), step)
