import json

import pytest

from nerve_fast.bench.pages import large_report

RESULTS = sorted(large_report.FOLDER.glob("*.json"))


@pytest.fixture
def document():
    # Of several machines the page shows the one measured last.
    return max((json.loads(path.read_text()) for path in RESULTS), key=measured_at)


def measured_at(document):
    return document["machine"]["date"]


def test_the_committed_page_is_what_the_committed_results_give(document):
    judged = large_report.bars(document["jobs"])
    assert large_report.page(document, judged) == large_report.PAGE.read_text(encoding="utf-8")
    readme = large_report.README.read_text(encoding="utf-8")
    assert large_report.within_readme(readme, document) == readme


def test_a_bar_that_is_missed_is_said_to_be(document):
    document["jobs"]["large shift"]["seconds"] = 1000
    judged = large_report.bars(document["jobs"])
    (bar,) = [bar for bar in judged if bar.what == "tiny, 4096², shift, no key pooled: minutes"]
    assert bar.met is False
    assert "**missed**" in large_report.page(document, judged)
