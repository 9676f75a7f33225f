import json

import pytest

from nerve_fast.bench.pages import large_report


@pytest.fixture
def documents():
    return large_report.documents()


def test_the_committed_page_is_what_the_committed_results_give(documents):
    assert large_report.page(documents) == large_report.PAGE.read_text(encoding="utf-8")
    readme = large_report.README.read_text(encoding="utf-8")
    assert large_report.within_readme(readme, documents[0]) == readme


def test_a_bar_that_is_missed_is_said_to_be(documents):
    documents[0]["jobs"]["large shift"]["seconds"] = 1002
    what = "tiny, 4096², shift, no key pooled: minutes"
    (bar,) = [bar for bar in large_report.bars(documents[0]) if bar.what == what]
    assert bar.met is False
    assert f"| {what} | <= 3 | 16.7, **missed** |" in large_report.page(documents)


def test_machines_stand_side_by_side(documents):
    other = {**documents[0], "machine": {**documents[0]["machine"], "device": "Another"}}
    other["machine"]["bfloat16_products"] = not other["machine"]["bfloat16_products"]
    page = large_report.page([documents[0], other])
    dtypes = [line for line in page.splitlines() if "its default" in line]
    assert ["–" in line for line in dtypes] == [True, True]
    (growth,) = [line for line in page.splitlines() if line.startswith("| a walk at")]
    *_, mine, others, _ = growth.split("|")
    assert mine == others != " – "


def test_any_machine_can_be_the_last_one(documents):
    for document in documents:
        page = large_report.page([document, *documents])
        assert f"All that follows is of the {document['machine']['device']}." in page


def test_results_that_lack_what_must_be_are_left_out(documents, tmp_path, monkeypatch):
    monkeypatch.setattr(large_report, "FOLDER", tmp_path)
    (tmp_path / "whole.json").write_text(json.dumps(documents[0]))
    del documents[0]["jobs"]["hundred"]
    (tmp_path / "part.json").write_text(json.dumps(documents[0]))
    (found,) = large_report.documents()
    assert "hundred" in found["jobs"]
