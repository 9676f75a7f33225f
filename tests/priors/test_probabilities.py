import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from nerve_fast.backbones.templates import IMAGENET_TEMPLATES
from nerve_fast.imaging.resampling import to_tokens
from nerve_fast.priors import (
    METHODS,
    CLIPPrior,
    PriorConfig,
    as_distribution,
    view_of,
)
from nerve_fast.priors.maskclip import PublicMaskCLIP
from nerve_fast.priors.resizing import opencv_bilinear
from nerve_fast.tiny.scenes import generate


def probabilities_of(pipe, image, classes, config):
    (found,) = CLIPPrior(pipe.prior.clip, config)([image], classes)
    return found


@pytest.fixture
def scene():
    return generate(950_000, (96, 144))


OWN = [name for name in METHODS if name != "proxyclip"]


@pytest.mark.parametrize("name", OWN)
def test_label_probabilities_are_a_distribution_on_the_patches(pipe, scene, name):
    image, _, names = scene
    G = probabilities_of(pipe, image, [[name] for name in names], PriorConfig(name))
    short = pipe.prior.clip.image_size * 3 // 2 // pipe.prior.clip.patch
    assert G.shape == (len(names), short, round(short * 1.5))
    assert (G >= 0).all()
    torch.testing.assert_close(G.sum(0), torch.ones(G.shape[1:]))


def test_those_of_proxyclip_lie_on_the_proxys_patches(pipe, scene, proxy):
    image, _, names = scene
    config = PriorConfig("proxyclip", networks={"proxy": str(proxy)})
    G = probabilities_of(pipe, image, [[name] for name in names], config)
    short = pipe.prior.clip.image_size * 3 // 2
    assert G.shape == (len(names), short // 4, round(short * 1.5) // 4)
    torch.testing.assert_close(G.sum(0), torch.ones(G.shape[1:]))
    windowed = PriorConfig("proxyclip", resolution=64, window=64, networks={"proxy": str(proxy)})
    assert probabilities_of(pipe, image, [["grass"], ["ball"]], windowed).shape == (2, 64, 96)


def test_windows_of_proxyclip_meet_on_clips_patches(pipe, scene, proxy):
    clip, image = pipe.prior.clip, scene[0]
    config = PriorConfig("proxyclip", networks={"proxy": str(proxy)})
    view = view_of(clip, image.size, config, magnified=(288, 192))
    assert len(view) > 1
    similarity = CLIPPrior(clip, config).similarities([image], ["grass", "ball"], view)
    assert similarity.shape == (1, 2, 192 // clip.patch, 288 // clip.patch)


@pytest.mark.parametrize("name", ["naclip", "maskclip"])
def test_label_probabilities_are_clips_own_in_the_order_of_the_labels(pipe, scene, name):
    image, words = scene[0], ["grass", "water", "ball"]
    clip = pipe.prior.clip
    with torch.no_grad():
        text = []
        for word in words:
            prompts = [template.format(word) for template in IMAGENET_TEMPLATES]
            tokens = clip.tokenizer(prompts, padding=True, return_tensors="pt")
            pooled = clip.model.text_model(**tokens).pooler_output
            text.append(
                normalize(normalize(clip.model.text_projection(pooled), dim=-1).mean(0), dim=0)
            )
        short = clip.image_size * 3 // 2
        pixels = clip.pixels(clip.resized(image, (short * 3 // 2, short)))[None]
        features = clip.patch_features(pixels, METHODS[name].read_out)[0]
        logits = 40 * torch.stack([features @ embedding for embedding in text])
    G = probabilities_of(pipe, image, [[word] for word in words], PriorConfig(name))
    torch.testing.assert_close(G, logits.softmax(0), rtol=1e-3, atol=1e-4)
    assert G.flatten(1).mean(1).unique().numel() == 3


def test_windows_of_a_wide_image_are_as_wide_as_they_can_be(pipe):
    image = Image.effect_noise((200, 40), 80).convert("RGB")
    config = PriorConfig(resolution=40, window=64, stride=64, logit_scale=1.0)
    classes = [["grass"], ["ball"]]
    G = probabilities_of(pipe, image, classes, config)
    assert G.shape == (2, 40, 200)
    first = probabilities_of(
        pipe,
        image.crop((0, 0, 64, 40)),
        classes,
        PriorConfig(resolution=40, window=64, logit_scale=1.0),
    )
    torch.testing.assert_close(G[..., :64], first)


def test_a_label_is_its_likeliest_synonym(pipe, scene):
    image = scene[0]
    config = PriorConfig(logit_scale=5.0)
    single = probabilities_of(pipe, image, [["grass"], ["water"], ["ball"]], config)
    joined = probabilities_of(pipe, image, [["grass", "water"], ["ball"]], config)
    best = torch.stack([single[:2].amax(0), single[2]])
    torch.testing.assert_close(joined, best / best.sum(0))


def test_probabilities_of_similarities_are_those_of_labels(pipe, scene, generator):
    classes = [["grass", "water"], ["ball"], ["sky", "house", "tree"]]
    words = [word for synonyms in classes for word in synonyms]
    config = PriorConfig(logit_scale=5.0)
    similarity = CLIPPrior(pipe.prior.clip, config).similarities([scene[0]], words)
    assert similarity.dtype == torch.float32
    assert similarity.abs().max() <= 1
    expected = CLIPPrior(pipe.prior.clip, config)([scene[0]], classes)
    prior = CLIPPrior(pipe.prior.clip, config)
    assert torch.equal(prior.maps([scene[0]], classes), similarity)
    assert torch.equal(as_distribution(prior.scores(similarity, classes)), expected)

    similarity = torch.randn(2, 6, 3, 4, generator=generator)
    words = (5.0 * similarity).softmax(1)
    best = torch.stack([words[:, :2].amax(1), words[:, 2], words[:, 3:].amax(1)], dim=1)
    torch.testing.assert_close(prior.scores(similarity, classes), best)
    torch.testing.assert_close(as_distribution(best), best / best.sum(1, keepdim=True))


def test_scores_that_are_all_0_make_all_labels_alike():
    scores = torch.tensor([[0.0, 2.0], [0.0, 6.0]])[..., None]
    assert as_distribution(scores)[..., 0].tolist() == [[0.5, 0.25], [0.5, 0.75]]
    scores[0, 0] = float("nan")
    assert as_distribution(scores)[:, 0].isnan().all()


def test_the_logit_scale_sharpens(pipe, scene):
    image = scene[0]
    low, high = (
        probabilities_of(pipe, image, [["grass"], ["ball"]], PriorConfig(logit_scale=scale))
        for scale in (1.0, 100.0)
    )
    assert high.amax(0).mean() > low.amax(0).mean()


def test_one_window_over_everything_is_the_whole_image(pipe):
    image = Image.effect_noise((96, 96), 80).convert("RGB")
    classes = [["grass"], ["ball"]]
    whole = probabilities_of(pipe, image, classes, PriorConfig(resolution=96))
    window = probabilities_of(pipe, image, classes, PriorConfig(resolution=96, window=96))
    assert window.shape == (2, 96, 96)
    centres = window[:, 4::8, 4::8]
    assert (centres - whole).abs().mean() < 0.02


def test_windows_average_what_each_of_them_sees(pipe):
    image = Image.effect_noise((96, 64), 80).convert("RGB")
    classes = [["grass"], ["ball"]]
    config = PriorConfig(resolution=64, window=64, stride=32, logit_scale=1.0)
    both = probabilities_of(pipe, image, classes, config)
    crops = [
        probabilities_of(pipe, image.crop((left, 0, left + 64, 64)), classes, config)
        for left in (0, 32)
    ]
    assert both.shape == (2, 64, 96)
    torch.testing.assert_close(both[..., :32], crops[0][..., :32])
    torch.testing.assert_close(both[..., 64:], crops[1][..., 32:])
    # With two labels log-odds are linear in the similarities, so they average.
    odds = [(p[0] / p[1]).log() for p in (both[..., 32:64], crops[0][..., 32:], crops[1][..., :32])]
    torch.testing.assert_close(odds[0], (odds[1] + odds[2]) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [(4, 6), (9, 2), (32, 48), (1, 1)])
def test_to_tokens_gives_distributions_in_row_major_order(make_prior, grid):
    probabilities = make_prior(8, 12, 3, dtype=torch.float32).permute(2, 0, 1)
    (G,) = to_tokens(probabilities[None], grid)
    assert G.shape == (grid[0] * grid[1], 3)
    torch.testing.assert_close(G.sum(-1), torch.ones(len(G)))
    if grid == (4, 6):
        left_half = torch.zeros(2, 8, 12)
        left_half[0, :, :6], left_half[1, :, 6:] = 1, 1
        labels = to_tokens(left_half[None], grid)[0].argmax(-1).unflatten(0, grid)
        assert labels.tolist() == [[0, 0, 0, 1, 1, 1]] * 4


def test_clearclips_windows_get_zeros_to_whole_patches(pipe):
    clip, words = pipe.prior.clip, ["grass", "ball"]
    image = Image.effect_noise((150, 91), 80).convert("RGB")
    config = PriorConfig("clearclip", resolution=43, protocol="mmseg")
    pixels = clip.pixels(opencv_bilinear(image, (71, 43)))
    # The patch has 8 pixels: 72 × 48, one more column and five more rows.
    padded = torch.zeros(1, 3, 48, 72)
    padded[0, :, 2:45, 0:71] = pixels
    features = clip.patch_features(padded, METHODS["clearclip"].read_out, position_offset=0.1)
    assert features.shape[1:3] == (6, 9)
    maps = (features @ clip.encode_words(words).T).permute(0, 3, 1, 2)
    maps = torch.nn.functional.interpolate(maps, (48, 72), mode="bilinear")[:, :, 2:45, :71]
    found = CLIPPrior(clip, config).similarities([image], words)
    torch.testing.assert_close(found, maps, rtol=1e-4, atol=1e-5)
    other = CLIPPrior(clip, PriorConfig("sclip", resolution=43, protocol="mmseg"))
    assert other._padding(other.view(image.size)) == (0, 0, 0, 0)


def test_the_authors_way_is_that_of_the_protocol(pipe):
    """MaskCLIP's network, and each method's position embeddings."""
    clip, words = pipe.prior.clip, ["grass", "ball"]
    image = Image.effect_noise((110, 91), 80).convert("RGB")
    for name, read_out, positions in (
        ("maskclip", PublicMaskCLIP(), (0.0, "bicubic")),
        ("gem", METHODS["gem"].read_out, (0.0, "antialiased")),
        ("clip", METHODS["clip"].read_out, (0.1, "bicubic")),
    ):
        config = PriorConfig(name, resolution=48, protocol="mmseg")
        pixels = clip.pixels(opencv_bilinear(image, (58, 48)))[None]
        features = clip.patch_features(pixels, read_out, *positions)
        maps = (features @ clip.encode_words(words).T).permute(0, 3, 1, 2)
        maps = torch.nn.functional.interpolate(maps, (48, 58), mode="bilinear")
        found = CLIPPrior(clip, config).similarities([image], words)
        torch.testing.assert_close(found, maps, rtol=1e-4, atol=1e-5)


def test_to_tokens_averages_what_a_token_covers():
    fine = torch.zeros(2, 8, 8)
    fine[0, :, ::4] = 1
    fine[1] = 1 - fine[0]
    (coarse,) = to_tokens(fine[None], (2, 2))
    torch.testing.assert_close(coarse[:, 0], torch.full((4,), 0.25), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("window", "stride"), [(None, None), (40, 20), (37, 11)], ids=["whole", "patches", "anywhere"]
)
def test_the_protocol_of_the_field_step_by_step(pipe, window, stride):
    clip, words = pipe.prior.clip, ["grass", "ball", "sky"]
    image = Image.effect_noise((150, 91), 80).convert("RGB")
    config = PriorConfig("naclip", resolution=43, window=window, stride=stride, protocol="mmseg")
    seen = opencv_bilinear(image, (71, 43))
    text = clip.encode_words(words)
    total, count = torch.zeros(3, 43, 71), torch.zeros(43, 71)
    window, stride = window or 71, stride or 71
    tops = range(max(43 - window + stride - 1, 0) // stride + 1)
    lefts = range(max(71 - window + stride - 1, 0) // stride + 1)
    for i in tops:
        for j in lefts:
            y, x = max(min(i * stride, 43 - window), 0), max(min(j * stride, 71 - window), 0)
            crop = seen.crop((x, y, min(x + window, 71), min(y + window, 43)))
            pixels = clip.pixels(crop)[None]
            features = clip.patch_features(pixels, METHODS["naclip"].read_out, position_offset=0.1)
            maps = (features @ text.T).permute(0, 3, 1, 2)
            maps = torch.nn.functional.interpolate(maps, crop.size[::-1], mode="bilinear")[0]
            total[:, y : y + crop.height, x : x + crop.width] += maps
            count[y : y + crop.height, x : x + crop.width] += 1
    found = CLIPPrior(clip, config).similarities([image], words)[0]
    torch.testing.assert_close(found, total / count, rtol=1e-4, atol=1e-5)
