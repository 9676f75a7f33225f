import dataclasses
import json

from nerve_fast.bench.pages import report


def test_the_page_says_where_we_lose(document):
    text = report.render({"abacus": document}, {"abacus": {}})
    assert "## Abacus, 2 threads" in text
    losses = text.split("### Where we lose")[1].split("###")[0]
    assert "magic (of another kind) takes 0.50 of our time" in losses
    assert "reference" not in losses
    assert "broken, N = 4,096, softmax, float32: ValueError: no" in losses
    assert "absent" not in losses
    assert "absent: gone is not installed" in text
    assert "| of another kind; replayed as a graph |" in text
    assert "| **blocked dense** ← auto | 200 ms |" in text
    growth = text.split("### How cost grows")[1]
    assert "| blocked dense, softmax, float32 | N | 2.00 | 4,096 | 16,384 |" in growth


def test_the_report_is_written_with_its_pictures(document, machine, tmp_path, row):
    for one in (
        row("blocked factorized", 0.1, normalization="shift", ours=True, taken=True),
        row("nerve-fast, auto", 5.0, operation="pipeline", ours=True, parts={"VAE": 3.0}),
    ):
        one.operations, one.moved, one.floor = 1e9, 1e8, 0.01
        document["rows"].append(dataclasses.asdict(one))
    results = tmp_path / "results"
    results.mkdir()
    (results / "abacus.json").write_text(json.dumps(document))
    (results / "half.unfinished.json").write_text("{")
    (tmp_path / "README.md").write_text(f"a\n{report.BEGIN}\nold\n{report.END}\nb\n")
    written = report.write(results, tmp_path)
    assert {path.name for path in written} == {
        "benchmarks.md",
        "README.md",
        "abacus-growth.png",
        "abacus-roofline.png",
        "abacus-speed-up.png",
        "abacus-pipeline.png",
    }
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("a\n")
    assert readme.endswith("\nb\n")
    assert "| Abacus, 2 threads, torch" in readme
    assert "old" not in readme
    page = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert "](plots/abacus-growth.png)" in page
    assert "| VAE | the rest |" in page


def test_committed_pages_are_what_the_committed_results_give(tmp_path):
    readme = report.ROOT / "README.md"
    (tmp_path / "README.md").write_text(readme.read_text(encoding="utf-8"), encoding="utf-8")
    report.write(report.FOLDER, tmp_path)
    for name in ("README.md", "docs/benchmarks.md"):
        committed = (report.ROOT / name).read_text(encoding="utf-8")
        assert (tmp_path / name).read_text(encoding="utf-8") == committed, (
            "python -m bench.pages.report"
        )
