from nerve_fast.bench.cases import keys, large


def test_jobs_run_on_something_small(own_cache, tmp_path):
    scene = str(tmp_path / "scene.png")
    large.drawn(scene, 192)
    found = large.large(scene, "softmax", None)
    assert found["keys"] == 2304
    assert found["process"] > 0
    job = keys.on_scene(scene)
    assert job["tokens"] == 2304
    by_way = {(row["grouping"], row["keys"]): row for row in job["rows"]}
    assert by_way["cells", 9]["error"] > by_way["clusters", 1024]["error"] > 0
    assert by_way["clusters", 2048]["agreement"] > by_way["clusters", 256]["agreement"] - 0.01
    assert sorted(keys.growth(8, 16, keys=50)) == ["256", "64"]
    assert 0.99 < large.rows_of_entropy(scene)["agreement"] <= 1
    shares = large.seams(str(tmp_path / "seams.png"), scenes=1, side=256)
    assert 0 < shares["near"] < 1
