"""The file of facts."""

from bench.gpu.facts import Facts


def test_facts_are_read_as_they_were_appended(tmp_path):
    facts = Facts(tmp_path / "facts.jsonl", call=3)
    assert facts.read() == []
    facts.append("a", task="one", ended="done")
    facts.append("a", task="two", ended="failed")
    facts.append("b", ended="done")
    assert [fact["call"] for fact in facts.read()] == [3, 3, 3]
    assert facts.finished_tasks("a") == {"one"}
    assert facts.is_done("b")
    assert not facts.is_done("a")


def test_an_incomplete_line_is_left_out_and_the_next_fact_is_complete(tmp_path):
    facts = Facts(tmp_path / "facts.jsonl")
    facts.append("a", value=1)
    with facts.path.open("a") as file:
        file.write('{"stage": "a", "val')
    assert [fact["value"] for fact in facts.read()] == [1]
    facts.end_last_line()
    facts.append("a", value=2)
    assert [fact["value"] for fact in facts.read()] == [1, 2]
    facts.end_last_line()
    assert len(facts.path.read_text().splitlines()) == 3
