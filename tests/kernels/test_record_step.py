"""The record of a step: the kernel equals the definition in every bit."""

import pytest
import torch
from pkd_kernels import TERMS, adam_prepare, dispatch, record_step, reference
from pkd_kernels.history import MODELS
from torch import Tensor

from bench.profiling import measured

LENGTH = 5
STACKS = pytest.mark.parametrize("stack", [1, 3, MODELS, 2 * MODELS + 1])
NETWORKS = pytest.mark.parametrize("networks", [1, 2])


def case(
    networks: int = 2, stack: int = 3, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments before step 0; models end at different steps. Equal on every device."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype).to(device)

    losses = [(drawn(stack), drawn(stack), drawn(stack, len(TERMS))) for _ in range(networks)]
    return {
        "losses": losses,
        "rates": drawn(LENGTH, stack),
        "steps": (torch.arange(stack) % LENGTH + 1).to(device),
        "history": drawn(LENGTH, stack, networks, 2 + len(TERMS)),
        "counter": torch.zeros(1, dtype=torch.int64, device=device),
        "rate": drawn(stack),
        "active": torch.ones(stack, dtype=torch.bool, device=device),
        "step": torch.arange(stack, device=device).float(),
        "corrections": torch.zeros(2, stack, dtype=dtype, device=device),
        "betas": (0.5, 0.999),
    }


def assert_equal(actual: dict, expected: dict) -> None:
    for name in ("history", "counter", "rate", "active", "step"):
        assert torch.equal(actual[name].cpu(), expected[name]), name


@STACKS
@NETWORKS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_definition_at_every_step(device, networks, stack, dtype):
    """Also at the last step; other rows of the history are unchanged."""
    actual, expected = (case(networks, stack, dtype, d) for d in (device, "cpu"))
    for _ in range(LENGTH):
        record_step(**actual)
        reference.record_step(**expected)
        assert_equal(actual, expected)


@NETWORKS
def test_after_the_last_step_the_kernel_records_nothing(device, networks):
    """Memory after the history and the rates is neither read nor written; the definition raises."""
    arguments = case(networks, device=device)
    longer = {k: torch.cat([arguments[k], arguments[k][:2]]) for k in ("history", "rates")}
    longer["rates"][LENGTH:] = torch.nan
    arguments |= {k: t[:LENGTH] for k, t in longer.items()}
    before = longer["history"].clone()
    for step in (LENGTH, LENGTH + 1):
        arguments["counter"].fill_(step)
        record_step(**arguments)
        assert arguments["counter"].item() == step + 1
        assert not arguments["active"].any()
        assert torch.equal(arguments["rate"], arguments["rates"][-1])
    assert torch.equal(longer["history"], before)
    with pytest.raises(IndexError):
        reference.record_step(**arguments)


def test_definition_by_hand():
    """Two models of one network, in the last step of the first."""
    generator, discriminator = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    terms, history = torch.arange(12.0).view(2, 6), torch.full((3, 2, 1, 8), -1.0)
    counter, rate, active = torch.tensor([1]), torch.zeros(2), torch.zeros(2, dtype=torch.bool)
    written = {"history": history, "counter": counter, "rate": rate, "active": active}
    written |= {"step": torch.tensor([4.0, 7.0]), "corrections": torch.zeros(2, 2)}
    rates = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    losses = [(generator, discriminator, terms)]
    reference.record_step(losses, rates, torch.tensor([2, 1]), **written, betas=(0.5, 0.999))
    assert counter.tolist() == [2]
    assert active.tolist() == [True, False]
    assert written["step"].tolist() == [5, 7]
    assert torch.equal(rate, rates[1])
    assert history[1, :, 0].tolist() == [[1, 3, 0, 1, 2, 3, 4, 5], [2, 4, 6, 7, 8, 9, 10, 11]]
    assert (history[[0, 2]] == -1).all()


@NETWORKS
def test_terms_of_any_stride(device, networks):
    """`generator_loss` returns a view, laid out by term."""
    actual, expected = (case(networks, device=d) for d in (device, "cpu"))
    actual["losses"] = [(g, d, terms.T.contiguous().T) for g, d, terms in actual["losses"]]
    record_step(**actual)
    reference.record_step(**expected)
    assert_equal(actual, expected)


def test_prepares_adam_as_its_own_launch_does(device):
    """In every bit, at every step, with models that have ended."""
    actual = case(stack=MODELS + 1, device=device)
    step, corrections = actual["step"].clone(), actual["corrections"].clone()
    for _ in range(LENGTH):
        record_step(**actual)
        adam_prepare(step, actual["rate"], actual["active"], corrections, betas=actual["betas"])
        assert torch.equal(actual["step"], step)
        assert torch.equal(actual["corrections"], corrections)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_stay_separate(device, value):
    actual = case(device=device)
    expected = torch.stack(
        [torch.cat([g[:, None], d[:, None], t], 1) for g, d, t in actual["losses"]]
    )
    actual["losses"][1][2][2, 4] = value
    expected[1, 2, 6] = value
    record_step(**actual)
    row = actual["history"][0].transpose(0, 1)
    torch.testing.assert_close(row, expected, rtol=0, atol=0, equal_nan=True)


@STACKS
@NETWORKS
def test_one_launch_reads_and_writes_each_value_once(device, networks, stack):
    arguments = case(networks, stack, device=device)
    with measured() as traffic:
        record_step(**arguments)
    assert traffic.launches == ["record_step"]
    if device == "cpu":
        per_network = {"generator": stack, "discriminator": stack, "terms": len(TERMS) * stack}
        read = {f"{k}{i}": n for k, n in per_network.items() for i in range(networks)}
        read |= {"rates": stack, "steps": stack, "counter": 1, "step": stack}
        written = {"history": networks * stack * (2 + len(TERMS)), "counter": 1}
        written |= {"rate": stack, "active": stack, "step": stack, "corrections": 2 * stack}
        for counts, expected in ((traffic.loaded, read), (traffic.stored, written)):
            assert counts == {f"record_step.{k}_ptr": n for k, n in expected.items()}


def test_inputs_are_unchanged_and_losses_may_require_grad(device):
    arguments = case(device=device)
    arguments["losses"] = [[t.requires_grad_() for t in parts] for parts in arguments["losses"]]
    inputs = [arguments["rates"], arguments["steps"], *(t for p in arguments["losses"] for t in p)]
    before, versions = [t.clone() for t in inputs], [t._version for t in inputs]
    record_step(**arguments)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    assert [t._version for t in inputs] == versions
    assert not arguments["history"].requires_grad


@pytest.mark.gpu
def test_replays_walk_through_the_steps(monkeypatch):
    monkeypatch.setattr(dispatch, "BACKEND", "triton")
    actual, expected = case(device="cuda"), case()
    record_step(**actual)  # compiles
    actual["counter"].zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        record_step(**actual)
    for _ in range(LENGTH):
        graph.replay()
        reference.record_step(**expected)
        assert_equal(actual, expected)


def test_compiles_into_one_graph(device):
    actual, expected = (case(device=d) for d in (device, "cpu"))
    compiled = torch.compile(record_step, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        compiled(**actual)
        reference.record_step(**expected)
    assert_equal(actual, expected)


def test_invalid_inputs_raise_value_error(device):
    arguments = case(device=device)

    def refused(match: str, **others) -> None:
        with pytest.raises(ValueError, match=match):
            record_step(**arguments | others)

    (g, d, terms), _ = losses = arguments["losses"]
    refused("1 or 2 networks, not 3", losses=[*losses, losses[0]])
    refused(r"losses have shapes .* for M = 3", losses=[losses[0], (g, d[:2], terms)])
    refused(
        r"history has shape \(4, 3, 2, 8\), not \(5, 3, 2, 8\)", history=arguments["history"][1:]
    )
    refused(r"rate has shape \(2,\), not \(3,\)", rate=arguments["rate"][1:])
    refused(r"counter has shape \(\), not \(1,\)", counter=arguments["counter"][0])
    refused("contiguous: the kernel uses them in place", rates=arguments["rates"].T.contiguous().T)
    refused(r"corrections has shape \(3, 2\)", corrections=arguments["corrections"].T)
    refused("must be int64", counter=arguments["counter"].int())
    refused("active must be bool", active=arguments["active"].int())
