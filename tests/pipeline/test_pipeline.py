import copy
import dataclasses
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

import nerve_fast as nf
from nerve_fast.imaging.images import model_size
from nerve_fast.imaging.resampling import as_distribution, to_tokens
from nerve_fast.pipeline import budget, execution
from nerve_fast.priors import CLIPPrior
from nerve_fast.tiny.scenes import generate

LABELS = ["grass", "water, sea", "ball", "köttbullar"]


@pytest.fixture
def image():
    return generate(960_000, (96, 144))[0]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def assert_same(a, b):
    assert torch.equal(a.label_map, b.label_map)
    assert torch.equal(a.probabilities, b.probabilities)
    assert torch.equal(a.prior, b.prior)


def test_every_pixel_gets_its_likeliest_label(pipe, image):
    out = pipe(image, LABELS)
    assert out.label_map.shape == (96, 144)
    assert out.label_map.dtype == torch.int64
    assert out.probabilities.shape == (4, 96, 144)
    assert out.probabilities.dtype == torch.float32
    assert out.labels == tuple(LABELS)
    assert (out.probabilities >= 0).all()
    torch.testing.assert_close(out.probabilities.sum(0), torch.ones(96, 144))
    assert torch.equal(out.label_map, out.probabilities.argmax(0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        out.labels = ()


def test_the_steps_are_those_of_the_parts(pipe, image):
    """What the pipeline does, from its public parts in float64."""
    config = nf.NerveConfig(steps=4, alpha=0.7, sharpness=3.0, temperature=0.3)
    classes = [["grass"], ["water", "sea"], ["ball"], ["köttbullar"]]
    probabilities = CLIPPrior(pipe.prior.clip, nf.PriorConfig())([image], classes)
    size = model_size(image.size, 128, pipe.graph.multiple)
    features = pipe.graph.queries_and_keys([image], size, [seeded(5)])
    G = to_tokens(probabilities, features.grid).double()
    P = nf.random_walk(features.q.double(), features.k.double(), G, features.grid, config)
    maps = P.mT.unflatten(2, features.grid)
    expected = interpolate(maps, (96, 144), mode="bilinear", align_corners=False)[0]

    options = {"processing_resolution": 128, "generator": seeded(5), "global_keys": None}
    out = pipe(image, LABELS, config=config, **options)
    torch.testing.assert_close(out.probabilities.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_default_resolution_is_the_models_own(pipe, image):
    unet, vae = pipe.graph.unet.config, pipe.graph.vae.config
    side = unet.sample_size * 2 ** (len(vae.block_out_channels) - 1)
    assert_same(pipe(image, LABELS), pipe(image, LABELS, processing_resolution=side))


def test_two_runs_agree_to_the_bit(pipe, image):
    assert_same(pipe(image, LABELS), pipe(image, LABELS))
    first, again, other = (pipe(image, LABELS, generator=seeded(seed)) for seed in (7, 7, 8))
    assert_same(first, again)
    assert not torch.equal(first.probabilities, other.probabilities)


@pytest.mark.parametrize("with_generator", [False, True])
def test_a_list_gives_exactly_what_one_call_an_image_gives(pipe, image, with_generator):
    images = [image, image.rotate(90, expand=True), np.asarray(image)]
    singles_draw, list_draws = (seeded(1), seeded(1)) if with_generator else (None, None)
    singles = [pipe(one, LABELS, generator=singles_draw) for one in images]
    together = pipe(images, LABELS, generator=list_draws)
    assert isinstance(together, list)
    assert len(together) == 3
    for one, other in zip(singles, together, strict=True):
        assert_same(one, other)
    assert pipe([], LABELS) == []


def test_images_of_a_batch_come_out_as_alone_up_to_rounding(pipe, image):
    images = [image, image.rotate(90, expand=True), image.rotate(180), image]
    together = pipe(images, LABELS, batch_size=3)
    for one, out in zip(images, together, strict=True):
        alone = pipe(one, LABELS)
        torch.testing.assert_close(out.probabilities, alone.probabilities, rtol=1e-3, atol=1e-4)
        assert out.label_map.shape == one.size[::-1]
    assert pipe([], LABELS, batch_size=3) == []


def test_each_image_may_have_a_generator_of_its_own(pipe, image):
    first, second = pipe([image, image], LABELS, generator=[seeded(1), seeded(2)])
    assert_same(first, pipe(image, LABELS, generator=seeded(1)))
    assert_same(second, pipe(image, LABELS, generator=seeded(2)))
    with pytest.raises(nf.InputError, match="generator is a list of 1; expected one for each of"):
        pipe([image, image], LABELS, generator=[seeded(1)])


@pytest.fixture(scope="module")
def large():
    return generate(960_001, (160, 288))


def test_tiles_are_one_graph(pipe, large):
    """A tiled image has as many tokens as a whole one, one walk, and nearly the same labels."""
    image, _, names = large
    pipe = copy.copy(pipe)
    pipe.prior = CLIPPrior(pipe.prior.clip, nf.PriorConfig(resolution=120, window=96))
    whole, tiled = (
        pipe(image, names, processing_resolution=0, tile=tile, overlap=32) for tile in (288, 128)
    )
    assert len(whole.plan.tiling) == 1
    assert len(tiled.plan.tiling) == 6
    assert whole.plan.grid == tiled.plan.grid
    assert torch.equal(whole.prior, tiled.prior)
    assert (whole.label_map == tiled.label_map).float().mean() > 0.9
    assert not torch.equal(whole.walked, tiled.walked)


def test_tiles_are_the_same_whatever_goes_through_together(pipe, large, monkeypatch):
    image, _, names = large
    options = {"processing_resolution": 0, "tile": 96, "overlap": 32}
    together = pipe(image, names, **options)
    monkeypatch.setattr(budget, "CPU_PIXELS", 1)
    alone = pipe(image, names, **options)
    assert together.plan.tile_batch > alone.plan.tile_batch == 1
    torch.testing.assert_close(together.walked, alone.walked, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "windows"), [((4096, 96), 1), ((1100, 257), 51), ((400, 1031), 96)]
)
def test_large_images_of_any_shape_go_through(pipe, size, windows):
    image = Image.effect_noise(size, 60)
    out = pipe(image, LABELS, processing_resolution=0, config=nf.NerveConfig(normalization="shift"))
    assert out.label_map.shape == size[::-1]
    assert len(out.plan.tiling) > 1
    # CLIP sees a thin image whole, as it would at the default resolution.
    assert len(out.plan.view) == windows


def test_clusters_are_never_silent(pipe, large, caplog):
    image, _, names = large
    exact = pipe(image, names, processing_resolution=0)
    assert exact.plan.config.global_keys is exact.plan.cluster_error is None
    assert not caplog.text
    out = pipe(image, names, processing_resolution=0, global_keys=100)
    error = out.plan.cluster_error
    assert out.plan.config.global_keys == 100
    assert 0 < error.relative < 0.5 < error.equal_labels <= 1
    assert error.rows == 256
    for said in (caplog.text, str(out.plan)):
        assert f"in 100 clusters, {error}" in said.replace(": the first", ", the first")
    config = nf.NerveConfig(global_keys=100)
    assert_same(out, pipe(image, names, processing_resolution=0, config=config))
    assert not torch.equal(out.walked, exact.walked)
    caplog.clear()
    for options in ({"global_keys": None}, {"global_keys": 10**6}):
        exact = pipe(image, names, processing_resolution=0, config=config, **options)
        assert exact.plan.config.global_keys is None
    assert not caplog.text


def test_many_tokens_are_walked_with_clusters(pipe, large, caplog, monkeypatch):
    image, _, names = large
    monkeypatch.setattr(budget, "EXACT_TOKENS", 1000)
    monkeypatch.setattr(budget, "GLOBAL_KEYS", 50)
    out = pipe(image, names, processing_resolution=0)
    assert out.plan.config.global_keys == 50
    # Its cost does not grow with the number of keys.
    shift = nf.NerveConfig(normalization="shift")
    out = pipe(image, names, processing_resolution=0, config=shift)
    assert out.plan.config.global_keys is None


def test_clusters_are_doubled_until_their_error_is_small_enough(pipe, large, caplog):
    image, _, names = large
    options = {"processing_resolution": 0, "global_keys": 20}
    loose = pipe(image, names, **options)
    bound = loose.plan.cluster_error.relative / 2
    out = pipe(image, names, max_key_error=bound, **options)
    assert out.plan.cluster_error.relative <= bound
    clusters = out.plan.config.global_keys
    assert clusters in {20 << n for n in range(1, 10)}
    half = pipe(image, names, processing_resolution=0, global_keys=clusters // 2)
    assert half.plan.cluster_error.relative > bound
    assert_same(out, pipe(image, names, processing_resolution=0, global_keys=clusters))
    # From features of the caller's too; and where nothing else holds, with all keys.
    features = pipe.encode(image, processing_resolution=0)
    again = pipe(features, names, max_key_error=bound, global_keys=20)
    assert_same(again, out)
    exact = pipe(image, names, max_key_error=1e-12, **options)
    assert exact.plan.config.global_keys is exact.plan.cluster_error is None
    assert "no clusters of" in caplog.text


def test_images_of_a_batch_have_clusters_and_errors_of_their_own(pipe, large):
    image, _, names = large
    options = {"processing_resolution": 0, "global_keys": 100}
    images = [image, image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)]
    together = pipe(images, names, batch_size=2, **options)
    for one, out in zip(images, together, strict=True):
        alone = pipe(one, names, **options)
        torch.testing.assert_close(out.walked, alone.walked, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(
            out.plan.cluster_error.relative, alone.plan.cluster_error.relative, rtol=0.05, atol=0
        )


def test_a_budget_that_is_too_small_is_refused_with_what_would_fit(pipe, large):
    image, _, names = large
    image, given = image.resize((1600, 1600)), {"config": nf.NerveConfig(steps=1)}
    with pytest.raises(nf.InputError) as refused:
        pipe(image, names, processing_resolution=0, max_memory="300MB", **given)
    said = str(refused.value)
    assert "\n" not in said
    assert said.startswith("max_memory is 300MB; segmenting 1600 × 1600 pixels with ")
    side = int(re.search(r"a processing resolution of (\d+) would fit", said)[1])
    pipe(image, names, processing_resolution=side, max_memory="300MB", **given)


def test_bars_count_windows_tiles_and_steps(pipe, large, monkeypatch):
    bars = []

    class Bar(execution.tqdm):
        def __init__(self, **options):
            hidden = options.pop("disable")
            super().__init__(**options, file=io.StringIO())
            bars.append((hidden, self))

    monkeypatch.setattr(execution, "tqdm", Bar)
    image, _, names = large
    out = pipe([image, image], names, processing_resolution=0, batch_size=2, progress=True)[0]
    expected = {"prior": len(out.plan.view), "graph": len(out.plan.tiling), "walk": 10}
    assert {bar.desc: bar.total for _, bar in bars} == {k: 2 * n for k, n in expected.items()}
    assert all(bar.n == bar.total and hidden is None for hidden, bar in bars)
    bars.clear()
    pipe(image, names, processing_resolution=0)
    assert all(hidden for hidden, _ in bars)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tiles_in_half_precision_give_the_same_picture(large, dtype):
    image, _, names = large
    half, whole = (
        nf.NervePipeline.from_pretrained("tiny", device="cpu", dtype=one)
        for one in (dtype, torch.float32)
    )
    out, expected = (one(image, names, processing_resolution=0) for one in (half, whole))
    assert len(out.plan.tiling) > 1
    # On a CPU the walk is in float32 in any case.
    assert out.plan.feature_dtype == torch.float32
    assert (out.label_map == expected.label_map).float().mean() > 0.95


def test_a_batch_in_tiles_with_steps_is_that_of_its_images(pipe, large):
    image, _, names = large
    images = [image, image.rotate(180)]
    options = {"processing_resolution": 0, "return_steps": [0, 3, 10]}
    together = pipe(images, names, batch_size=2, **options)
    for one, out in zip(images, together, strict=True):
        alone = pipe(one, names, **options)
        torch.testing.assert_close(out.walked, alone.walked, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(out.steps[3], alone.steps[3], rtol=1e-3, atol=1e-4)
        assert torch.equal(out.steps[10], out.walked)
        torch.testing.assert_close(out.steps[0], out.prior)


def test_a_batch_that_does_not_fit_is_halved(pipe, image):
    images = [image] * 4
    fits = pipe(image, LABELS).plan.peak_memory
    results = pipe(images, LABELS, batch_size=4, max_memory=fits + 1_000_000)
    for out in results:
        assert_same(out, results[0])
    assert results[0].plan.peak_memory <= fits + 1_000_000
    with pytest.raises(nf.InputError, match="max_memory is 1MB"):
        pipe(images, LABELS, batch_size=4, max_memory="1MB")


def test_a_shared_generator_draws_in_the_order_of_the_list(pipe, image):
    images = [image, image.rotate(90, expand=True), image]
    draws = seeded(3)
    singles = [pipe(one, LABELS, generator=draws) for one in images]
    for one, out in zip(
        singles, pipe(images, LABELS, generator=seeded(3), batch_size=3), strict=True
    ):
        torch.testing.assert_close(out.walked, one.walked, rtol=1e-3, atol=1e-4)


def test_probabilities_are_made_when_asked_for(pipe, image):
    out = pipe(image, LABELS)
    assert "probabilities" not in vars(out)
    assert out.probabilities is out.probabilities


def test_paths_arrays_and_images_are_the_same(pipe, image, tmp_path):
    image.save(tmp_path / "a.png")
    expected = pipe(image, LABELS)
    for other in (np.asarray(image), tmp_path / "a.png", str(tmp_path / "a.png")):
        assert_same(pipe(other, LABELS), expected)


def test_prior_and_steps_can_be_asked_for(pipe, image):
    out = pipe(image, LABELS, return_steps=[0, 2, 10])
    assert list(out.steps) == [0, 2, 10]
    h, w = out.prior.shape[1:]
    assert h * 144 == w * 96
    torch.testing.assert_close(out.steps[0], out.prior)
    assert not torch.allclose(out.steps[2], out.steps[10])
    final = interpolate(out.steps[10][None], (96, 144), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(final, out.probabilities)
    assert pipe(image, LABELS).steps == {}


def test_processing_resolution_sets_the_token_grid(pipe, image):
    coarse, fine, own = (
        pipe(image, LABELS, processing_resolution=side).prior.shape[1:] for side in (64, 128, 0)
    )
    assert fine == (2 * coarse[0], 2 * coarse[1])
    assert own == pipe(image, LABELS, processing_resolution=96).prior.shape[1:]


def test_output_is_at_the_input_resolution_unless_told_otherwise(pipe, image):
    assert pipe(image, LABELS, processing_resolution=64).label_map.shape == (96, 144)
    out = pipe(image, LABELS, processing_resolution=64, match_input_resolution=False)
    assert out.label_map.shape == (64, 96)
    assert out.overlay().width >= 96


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (257, 103), (16, 16)])
def test_any_size_goes_through(pipe, size):
    out = pipe(Image.effect_noise(size, 60), LABELS)
    assert out.label_map.shape == size[::-1]


def test_one_label_is_everywhere(pipe, image):
    out = pipe(image, ["grass"])
    assert (out.label_map == 0).all()
    torch.testing.assert_close(out.probabilities, torch.ones(1, 96, 144))


@pytest.mark.parametrize("normalization", ["relu", "l1", "shift"])
def test_every_normalization_gives_probabilities(pipe, image, normalization):
    out = pipe(image, LABELS, config=nf.NerveConfig(normalization=normalization))
    assert (out.probabilities >= 0).all()
    torch.testing.assert_close(out.probabilities.sum(0), torch.ones(96, 144))


def test_as_distribution_clips_and_gives_empty_rows_to_everyone():
    rows = as_distribution(torch.tensor([[1.0, -1.0, 3.0], [-1.0, -2.0, 0.0]]))
    torch.testing.assert_close(rows, torch.tensor([[0.25, 0.0, 0.75], [1 / 3] * 3]))


@pytest.mark.parametrize("network", ["prior", "graph"])
def test_values_that_are_not_finite_are_no_result(image, network):
    broken = nf.NervePipeline.from_pretrained("tiny", device="cpu")
    if network == "prior":
        broken.prior.clip.model.visual_projection.weight.data[0] = float("nan")
    else:
        broken.graph.unet.conv_in.weight.data[0] = float("inf")
    with pytest.raises(
        nf.InputError, match=f"the {network}'s network gave values that are not finite"
    ):
        broken(image, LABELS)


def test_results_can_be_worked_with(pipe, image):
    out = pipe(image, LABELS)
    out.label_map[0, 0] = 1
    weight = torch.ones(4, 1, 1, requires_grad=True)
    (out.probabilities * weight).sum().backward()
    assert weight.grad is not None
    assert out != pipe(image, LABELS)
    assert len({out}) == 1


def test_half_precision_gives_the_same_picture(pipe, image):
    half = nf.NervePipeline.from_pretrained("tiny", device="cpu", dtype=torch.bfloat16)
    agreement = (half(image, LABELS).label_map == pipe(image, LABELS).label_map).float().mean()
    assert agreement > 0.9


def test_results_are_saved_whole_and_come_back(pipe, image, tmp_path):
    out = pipe(image, LABELS)
    out.save(tmp_path / "a.npz")
    out.save(tmp_path / "a.png")
    with np.load(tmp_path / "a.npz") as saved:
        assert np.array_equal(saved["label_map"], out.label_map.numpy())
        assert np.array_equal(saved["probabilities"], out.probabilities.numpy())
        assert saved["labels"].tolist() == LABELS
    with Image.open(tmp_path / "a.png") as saved:
        assert np.array_equal(np.asarray(saved), out.label_map.numpy())
    with pytest.raises(nf.InputError, match=r"a.jpg: expected a name that ends in .png or .npz"):
        out.save(tmp_path / "a.jpg")
    with pytest.raises(nf.InputError, match="cannot be written"):
        out.save(tmp_path / "missing" / "a.png")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels": []}, nf.InputError, "labels is empty"),
        ({"labels": "cat"}, TypeError, "expected a list of strings"),
        ({"labels": ["word " * 90]}, nf.InputError, "CLIP reads 77"),
        ({"image": "no/such/file.png"}, nf.InputError, "no such file"),
        ({"image": None}, TypeError, "image is a NoneType"),
        ({"config": {}}, TypeError, "config is a dict"),
        ({"processing_resolution": -1}, nf.InputError, "processing_resolution is -1"),
        ({"processing_resolution": 64.0}, nf.InputError, "processing_resolution is 64.0"),
        ({"labels": None}, nf.InputError, "neither labels nor seeds are given; pass labels"),
        ({"labels": 3}, TypeError, "labels is 3; expected a list of strings"),
        ({"return_steps": 5}, TypeError, "return_steps is 5; expected a list"),
        ({"generator": 3}, TypeError, "generator is a int"),
        ({"return_steps": [-1]}, ValueError, "return_steps holds -1"),
        ({"batch_size": 0}, nf.InputError, "batch_size is 0; expected a whole number above 0"),
        ({"global_keys": 0}, nf.InputError, "global_keys is 0; .* or None for all keys"),
        ({"global_keys": "some"}, nf.InputError, "global_keys is 'some'; expected a whole number"),
        ({"global_keys": True}, nf.InputError, "global_keys is True; expected a whole number"),
        ({"max_key_error": 0}, nf.InputError, "max_key_error is 0; expected a finite number"),
        ({"max_key_error": "1"}, nf.InputError, "max_key_error is '1'; expected a finite number"),
        ({"max_memory": "some"}, nf.InputError, "max_memory is 'some'"),
        ({"tile": 3}, nf.InputError, "tile is 3; expected 8 pixels or more"),
        ({"overlap": 700}, nf.InputError, "overlap is 700 and tile 192"),
        ({"generator": [3]}, TypeError, "generator is a int"),
        ({"generator": [None]}, TypeError, "generator is a NoneType"),
    ],
)
def test_wrong_inputs_are_refused(pipe, image, arguments, error, message):
    arguments = {"image": image, "labels": LABELS, **arguments}
    with pytest.raises(error, match=message):
        pipe(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"clip": "somewhere"}, nf.InputError, "models stands for both clip and diffusion"),
        ({"config": {}}, TypeError, "config is a dict; expected a NerveConfig"),
        ({"dtype": "float16"}, TypeError, "dtype is 'float16'; expected a torch.dtype"),
        ({"timestep": 100.0}, nf.InputError, "timestep is 100.0; expected 0 to 999"),
        ({"layers": "mid"}, nf.InputError, "layer is 'mid'; this UNet's self-attentions are"),
    ],
)
def test_wrong_arguments_of_from_pretrained_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        nf.NervePipeline.from_pretrained("tiny", device="cpu", **arguments)


def test_unknown_priors_and_backends_are_refused():
    with pytest.raises(ValueError, match="prior is 'dino'; expected one of"):
        nf.NervePipeline.from_pretrained("tiny", device="cpu", prior="dino")
    with pytest.raises(ValueError, match="backend 'triton' takes float16, .*not float64"):
        nf.NervePipeline.from_pretrained(
            "tiny", device="cpu", dtype=torch.float64, backend="triton"
        )


def test_the_package_lists_its_public_names():
    assert set(nf.__all__) <= set(dir(nf))
    assert nf.__version__
    for name in nf.__all__:
        assert getattr(nf, name) is not None


def test_importing_the_operations_does_not_import_the_networks():
    import subprocess
    import sys

    code = "import sys, nerve_fast; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_importing_the_networks_says_nothing():
    import subprocess
    import sys

    code = "import nerve_fast as nf, nerve_fast.priors, nerve_fast.refiners; nf.NervePipeline"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_compiled_networks_give_the_same_picture(pipe, image):
    compiled = nf.NervePipeline.from_pretrained("tiny", device="cpu", compile=True)
    out, expected = (one(image, LABELS) for one in (compiled, pipe))
    torch.testing.assert_close(out.probabilities, expected.probabilities, rtol=1e-3, atol=1e-4)
    blocks = [*compiled.graph.unet.down_blocks, compiled.graph.vae.encoder]
    assert all(block._compiled_call_impl is not None for block in blocks)
