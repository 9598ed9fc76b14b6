"""The nodes of a graph, from the profiler's events."""

import pytest
import torch

from bench.gpu import replay


def event(name: str, start: float, duration: float, grid: list[int]) -> dict:
    return {"name": name, "ts": start, "dur": duration, "args": {"grid": grid}}


def test_a_node_has_medians_over_the_replays():
    events = []
    for start, duration in ((0, 2), (100, 3), (200, 7)):
        events.append(event("a", start, duration, [4, 1, 1]))
        events.append(event("b", start + 10, 1, [8, 2, 1]))
    first, second = replay.nodes(events, replays=3)
    assert (first["name"], first["us"], first["grid"]) == ("a", 3, [4, 1, 1])
    assert first["gap_us"] == 89  # since the replay before
    assert (second["name"], second["us"], second["gap_us"]) == ("b", 1, 7)


@pytest.mark.parametrize("names", ["aba", "abba", ""])
def test_replays_that_differ_are_an_error(names):
    events = [event(name, i, 1, [1]) for i, name in enumerate(names)]
    with pytest.raises(ValueError, match=f"{len(names)} events are not 2 equal replays"):
        replay.nodes(events, replays=2)


def test_the_profiler_lists_the_operations_of_every_call():
    a = torch.ones(4)
    events = replay.profiled([a.neg_, a.sqrt_] * 2, torch.device("cpu"))
    names = [node["name"] for node in replay.nodes(events, replays=2)]
    assert names == ["aten::neg_", "aten::sqrt_"]
