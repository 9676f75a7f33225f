import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from nerve_fast.backbones.templates import IMAGENET_TEMPLATES
from nerve_fast.priors import READ_OUTS, PriorConfig, label_probabilities, to_tokens
from nerve_fast.priors.probabilities import window_starts
from nerve_fast.tiny.scenes import generate


def probabilities_of(pipe, image, classes, config):
    (found,) = label_probabilities(pipe.clip, [image], classes, config)
    return found


@pytest.fixture
def scene():
    return generate(950_000, (96, 144))


@pytest.mark.parametrize("name", ["naclip", "maskclip"])
def test_label_probabilities_are_a_distribution_on_the_patches(pipe, scene, name):
    image, _, names = scene
    G = probabilities_of(pipe, image, [[name] for name in names], PriorConfig(name))
    short = pipe.clip.image_size * 3 // 2 // pipe.clip.patch
    assert G.shape == (len(names), short, round(short * 1.5))
    assert (G >= 0).all()
    torch.testing.assert_close(G.sum(0), torch.ones(G.shape[1:]))


@pytest.mark.parametrize("name", ["naclip", "maskclip"])
def test_label_probabilities_are_clips_own_in_the_order_of_the_labels(pipe, scene, name):
    image, words = scene[0], ["grass", "water", "ball"]
    clip = pipe.clip
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
        features = clip.patch_features(pixels, READ_OUTS[name])[0]
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


@pytest.mark.parametrize(
    ("length", "window", "stride", "expected"),
    [
        (336, 224, 112, [0, 112]),
        (337, 224, 112, [0, 112, 113]),
        (224, 224, 112, [0]),
        (100, 224, 112, [0]),
        (500, 224, 112, [0, 112, 224, 276]),
    ],
)
def test_the_last_window_is_shifted_inward(length, window, stride, expected):
    assert window_starts(length, window, stride) == expected


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


def test_to_tokens_averages_what_a_token_covers():
    fine = torch.zeros(2, 8, 8)
    fine[0, :, ::4] = 1
    fine[1] = 1 - fine[0]
    (coarse,) = to_tokens(fine[None], (2, 2))
    torch.testing.assert_close(coarse[:, 0], torch.full((4,), 0.25), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "clip"}, "prior is 'clip'; expected one of maskclip, naclip"),
        ({"resolution": 0}, "prior resolution is 0; expected a number of pixels"),
        ({"window": -8}, "prior window is -8"),
        ({"window": 64.0}, "prior window is 64.0"),
        ({"stride": 8}, "prior stride is 8 and window is None"),
        ({"window": 64, "stride": 65}, "prior stride is 65 and window is 64"),
        ({"logit_scale": 0}, "logit scale is 0"),
        ({"logit_scale": "40"}, "logit scale is '40'"),
        ({"logit_scale": float("nan")}, "logit scale is nan"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PriorConfig(**settings)


def test_a_window_that_cuts_patches_is_refused(pipe, scene):
    with pytest.raises(ValueError, match="prior window is 60; expected a multiple of CLIP's patch"):
        probabilities_of(pipe, scene[0], [["ball"]], PriorConfig(window=60))
