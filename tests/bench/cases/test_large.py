from nerve_fast.bench.cases import large


def test_jobs_run_on_something_small(own_cache, tmp_path):
    scene = str(tmp_path / "scene.png")
    large.drawn(scene, 192)
    found = large.large(scene, "softmax", None)
    assert found["stride"] == 1
    assert found["process"] > 0
    rows = large.strides(scene)
    assert rows[0]["agreement"] == 1
    assert rows[0]["error"] == 0 < rows[-1]["error"]
    assert 0.99 < large.rows_of_entropy(scene)["agreement"] <= 1
    shares = large.seams(str(tmp_path / "seams.png"), scenes=1, side=256)
    assert 0 < shares["near"] < 1
