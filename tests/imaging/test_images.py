import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from nerve_fast import InputError
from nerve_fast.imaging.images import load_image, model_size, to_tensor


def saved(tmp_path, image, name="image.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


@pytest.fixture
def colours():
    return Image.fromarray(np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3))


def test_rgb_comes_back_as_it_is(tmp_path, colours):
    expected = np.asarray(colours)
    for image in (colours, expected, saved(tmp_path, colours), str(tmp_path / "image.png")):
        loaded = load_image(image)
        assert loaded.mode == "RGB"
        assert np.array_equal(np.asarray(loaded), expected)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB"])
def test_other_modes_are_converted(colours, mode):
    loaded = load_image(
        colours.convert("RGB").convert(mode) if mode != "LAB" else Image.new("LAB", (7, 5))
    )
    assert (loaded.mode, loaded.size) == ("RGB", (7, 5))


def test_16_bit_greyscale_keeps_its_range(tmp_path):
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    path = saved(tmp_path, Image.fromarray(levels))
    assert np.asarray(load_image(path))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_transparency_is_laid_over_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    for path in (
        saved(tmp_path, image),
        saved(tmp_path, palette, "palette.png", transparency=1),
    ):
        assert np.asarray(load_image(path)).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_exif_rotation_is_applied(tmp_path, colours):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    path = saved(tmp_path, colours, exif=exif)
    assert np.array_equal(np.asarray(load_image(path)), np.rot90(np.asarray(colours), -1))


def test_the_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [Image.new("RGB", (3, 2), colour) for colour in ("red", "blue")]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert np.asarray(load_image(path))[0, 0].tolist() == [255, 0, 0]


def test_one_pixel_is_an_image():
    assert load_image(Image.new("L", (1, 1), 7)).getpixel((0, 0)) == (7, 7, 7)


def test_files_that_are_no_images_are_refused_in_one_line(tmp_path, colours):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    for suffix, options in ((".png", {}), (".jpg", {}), (".webp", {}), (".tif", {}), (".gif", {})):
        big = Image.effect_noise((64, 64), 50).convert("RGB")
        file = io.BytesIO()
        big.save(file, format=Image.registered_extensions()[suffix], **options)
        (tmp_path / f"cut{suffix}").write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
    cases = {
        "missing.png": "no such file",
        "empty.png": "the file is empty",
        "text.png": "not an image",
        "cut.png": "damaged or truncated",
        "cut.jpg": "damaged or truncated",
        "cut.webp": "damaged or truncated|not an image",
        "cut.tif": "damaged or truncated|not an image",
        "cut.gif": "damaged or truncated",
        ".": "is a folder",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message) as caught:
            load_image(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_arrays_of_another_kind_are_refused(array):
    with pytest.raises(InputError, match=re.escape(f"shape {array.shape} and dtype {array.dtype}")):
        load_image(array)


def test_8_bit_values_in_a_wide_type_keep_their_range():
    wide = Image.fromarray(np.full((2, 2), 200, dtype=np.int32))
    assert load_image(wide).getpixel((0, 0)) == (200, 200, 200)


def test_a_truncated_image_that_is_already_open_is_refused(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:900])
    with pytest.raises(InputError, match="image: the image is damaged or truncated"):
        load_image(Image.open(tmp_path / "b.jpg"))


def test_a_name_too_long_for_the_file_system_is_refused():
    with pytest.raises(InputError, match="cannot be read: File name too long"):
        load_image("x" * 300 + ".png")


def test_floating_point_and_wide_integers_are_refused():
    with pytest.raises(InputError, match="floating-point"):
        load_image(Image.new("F", (2, 2)))
    with pytest.raises(InputError, match="integers from 0 to 70000"):
        load_image(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)))


def test_something_else_is_refused():
    with pytest.raises(TypeError, match="image is a int; expected a PIL image, a path"):
        load_image(3)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (512, 512)),
        ((100, 100), (512, 512)),
        ((768, 512), (768, 512)),
        ((640, 480), (704, 512)),
        ((480, 640), (512, 704)),
        ((4096, 256), (2048, 128)),
        ((5000, 10), (2048, 64)),
        ((1, 1), (512, 512)),
    ],
)
def test_model_size_keeps_the_shape(size, expected):
    assert model_size(size, 512, 64) == expected


def test_model_size_has_the_fields_limit_and_none_for_the_images_own_size():
    assert model_size((1680, 336), 336, 14) == (1680, 336)
    assert model_size((4000, 500), None, 8) == (4000, 496)


def test_to_tensor_is_channels_first_between_0_and_1(colours):
    tensor = to_tensor(colours)
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor * 255, torch.from_numpy(np.asarray(colours).copy()).permute(2, 0, 1))
