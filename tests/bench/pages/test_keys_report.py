from nerve_fast.bench.pages import keys_report

ROWS = [
    {"grouping": "all", "keys": 5000, "seconds": 90.0},
    {"grouping": "cells", "keys": 1250, "seconds": 20.0, "error": 0.05, "agreement": 0.97},
    {"grouping": "clusters", "keys": 2048, "seconds": 2.0, "error": 0.01, "agreement": 0.99},
]
JOBS = {"keys, scene": {"tokens": 5000, "rows": ROWS}, "growth": {"65536": 10.0, "1048576": 250.0}}


def test_jobs_that_have_not_run_have_no_bars():
    assert keys_report.compared({}) == []
    assert keys_report.bars_of_growth({}) == []
    assert len(keys_report.compared(JOBS)) == 1


def test_bars_are_of_the_clusters_that_are_the_default():
    ((job, what),) = keys_report.compared(JOBS)
    values = [value for _, value, _, _ in keys_report.bars_of_keys(job, what)]
    assert values == [0.99, 0.99]
    slow = {**job, "rows": [{**ROWS[0], "seconds": 70.0}, *ROWS[1:]]}
    assert [value for _, value, _, _ in keys_report.bars_of_keys(slow, what)] == [0.99, 0]
    ((said, value, _, _),) = keys_report.bars_of_growth(JOBS["growth"])
    assert said == "a walk at 1,048,576 tokens: times one at 65,536"
    assert value == 25.0


def test_every_way_of_grouping_is_a_row_and_drawn(tmp_path):
    lines = keys_report.keys_table(JOBS["keys, scene"], "a scene")
    assert lines[1] == "5,000 tokens of a scene:"
    assert [line.count("|") for line in lines[3:]] == [7] * 5
    keys_report.plot_keys({}, tmp_path / "none.png")
    keys_report.plot_keys(JOBS, tmp_path / "keys.png")
    assert [path.name for path in tmp_path.iterdir()] == ["keys.png"]
