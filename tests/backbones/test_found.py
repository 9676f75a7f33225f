import pytest
import torch
from PIL import Image

from nerve_fast import InputError
from nerve_fast.backbones.dino import DINOBackbone
from nerve_fast.backbones.found import Saliency
from nerve_fast.imaging.images import to_tensor

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}


@pytest.fixture
def dino(systems):
    return DINOBackbone.from_pretrained(systems["dino"], **CPU)


@pytest.mark.parametrize("size", [(48, 40), (45, 33)])
def test_saliency_is_a_convolution_of_the_last_keys(systems, dino, size):
    width, height = size
    image = Image.effect_noise(size, 80).convert("RGB")
    found = Saliency.from_file(str(systems["found"]), dino)(image)
    tall, wide = -(-height // 8), -(-width // 8)
    padded = torch.zeros(1, 3, 8 * tall, 8 * wide)
    padded[0, :, :height, :width] = (to_tensor(image) - dino.image_mean) / dino.image_std
    with torch.no_grad():
        states = dino.model(
            padded, interpolate_pos_encoding=True, output_hidden_states=True
        ).hidden_states
        layer = [part for name, part in dino.model.named_modules() if name.endswith("key")]
        before = [part for name, part in dino.model.named_modules() if "layernorm_before" in name]
        # The key projection of the last layer, on what it normalises.
        keys = (layer or [dino._projections[1]])[-1](before[-1](states[-2]))[:, 1:]
        grid = keys.mT.unflatten(2, (tall, wide))
        convolution = torch.nn.Conv2d(16, 1, 1)
        convolution.load_state_dict(systems["decoder"])
        logits = torch.nn.functional.interpolate(
            convolution(grid), scale_factor=8, mode="bilinear", align_corners=False
        )
    expected = logits[0, 0, :height, :width].sigmoid()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.max() - found.min() > 0.01


def test_other_files_are_refused(systems, dino, tmp_path):
    with pytest.raises(InputError, match="prior network found is 'nowhere.pt': no such file"):
        Saliency.from_file("nowhere.pt", dino)
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(InputError, match=r"text\.pt: the FOUND model cannot be loaded"):
        Saliency.from_file(str(tmp_path / "text.pt"), dino)
    decoder = {"weight": torch.zeros(1, 384, 1, 1), "bias": torch.zeros(1)}
    torch.save({"decoder": decoder}, tmp_path / "wide.pt")
    with pytest.raises(InputError, match="for keys of 384 channels, and DINO's have 16"):
        Saliency.from_file(str(tmp_path / "wide.pt"), dino)


def test_its_identity_changes_with_the_weights(systems, dino):
    one = Saliency.from_file(str(systems["found"]), dino)
    other = Saliency(dino, one.weight.flip(0), one.bias)
    assert one.identity == Saliency.from_file(str(systems["found"]), dino).identity
    assert one.identity != other.identity
