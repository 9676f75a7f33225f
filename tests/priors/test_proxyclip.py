import pytest
import torch
from torch.nn.functional import interpolate

from nerve_fast.backbones.dino import DINOBackbone
from nerve_fast.priors import ProxyCLIP
from nerve_fast.priors import proxyclip as module
from nerve_fast.priors.proxyclip import proxy_attention


@pytest.mark.parametrize("rows", [2, 5, 512])
def test_attention_is_the_papers(generator, monkeypatch, rows):
    monkeypatch.setattr(module, "ROWS", rows)
    x = torch.randn(2, 11, 6, generator=generator) + 0.3
    v = torch.randn(2, 11, 4, generator=generator)
    expected = []
    for features, values in zip(x, v, strict=True):
        unit = features / features.norm(dim=-1, keepdim=True)
        alike = unit @ unit.T
        scores = 3.0 * (alike - 1.2 * alike.mean())
        weights = torch.where(scores >= 0, scores.exp(), 0.0)
        assert (weights == 0).any()
        expected.append(weights @ values / weights.sum(-1, keepdim=True))
    torch.testing.assert_close(proxy_attention(x, v), torch.stack(expected))


def test_a_patch_like_no_other_attends_to_the_one_most_like_it():
    # All alike: the shifted scores, that of a patch with itself too, are below 0.
    x = torch.ones(1, 5, 3) + torch.arange(5)[None, :, None] * torch.tensor([1e-3, 0.0, 0.0])
    v = torch.eye(5)[None]
    attended = proxy_attention(x, v)
    assert attended.isfinite().all()
    torch.testing.assert_close(attended.sum(-1), torch.ones(1, 5))


class Looking(torch.nn.Module):
    """Stands in for a proxy: keeps what it is shown."""

    patch = 4

    def __init__(self):
        super().__init__()
        self.image_mean = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
        self.image_std = torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)

    def features(self, pixels):
        self.seen = pixels
        return pixels.unfold(2, 4, 4).unfold(3, 4, 4).mean((-2, -1)).permute(0, 2, 3, 1)


def test_the_proxy_sees_the_same_pixels_in_its_own_normalisation(generator):
    image = torch.rand(2, 3, 16, 24, generator=generator)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ([0.48, 0.46, 0.41], [0.27, 0.26, 0.28]))
    proxy = Looking()
    ProxyCLIP(proxy, mean, std).features((image - mean) / std)
    torch.testing.assert_close(proxy.seen * proxy.image_std + proxy.image_mean, image)


@pytest.mark.parametrize(
    ("size", "seen"), [((16, 24), (16, 24)), ((19, 25), (20, 24)), ((3, 40), (4, 40))]
)
def test_sides_come_to_whole_patches(size, seen):
    proxy = Looking()
    mean = torch.zeros(3, 1, 1)
    ProxyCLIP(proxy, mean, mean + 1).features(torch.zeros(1, 3, *size))
    assert tuple(proxy.seen.shape[-2:]) == seen


@pytest.mark.parametrize("size", [(64, 64), (32, 72), (80, 40)])
def test_proxyclip_reads_values_on_the_proxys_grid(pipe, proxy, generator, size):
    clip = pipe.prior.clip
    loaded = DINOBackbone.from_pretrained(proxy, device=clip.device, dtype=torch.float32)
    read_out = ProxyCLIP(loaded, clip.image_mean, clip.image_std)
    pixels = torch.randn(2, 3, *size, generator=generator)
    finer = (size[0] // 4, size[1] // 4)
    features = clip.patch_features(pixels, read_out)
    assert features.shape[:3] == (2, *finer)

    seen = {}

    def by_hand(layers, x, grid, pixels):
        for layer in layers[:-1]:
            x = layer(x, None)
        attention = layers[-1].self_attn
        v = attention.v_proj(layers[-1].layer_norm1(x))[:, 1:].unflatten(1, grid)
        v = interpolate(v.permute(0, 3, 1, 2), finer, mode="bilinear").permute(0, 2, 3, 1)
        raw = pixels * clip.image_std + clip.image_mean
        shown = loaded.features((raw - loaded.image_mean) / loaded.image_std)
        seen.update(shown=shown)
        attended = proxy_attention(shown.flatten(1, 2), v.flatten(1, 2))
        return attention.out_proj(attended).unflatten(1, finer)

    expected = clip.patch_features(pixels, by_hand)
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3)
