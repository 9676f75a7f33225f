import numpy as np
import pytest
import torch
from PIL import Image

from nerve_fast import NerveConfig
from nerve_fast.app import session as module
from nerve_fast.app.result import Asked, Click
from nerve_fast.app.session import Session, words_of
from nerve_fast.app.settings import AppSettings
from nerve_fast.config import SEED_CONFIG
from nerve_fast.errors import InputError


def test_a_result_is_that_of_the_pipeline(opened, pipe, scene):
    image, _, names = scene
    result = opened.segment(Asked("; ".join(names)))
    expected = pipe(image, names, return_steps=[4])
    assert torch.equal(result.label_map(10), expected.label_map)
    assert torch.equal(result.maps(4), expected.steps[4])
    assert torch.equal(result.maps(0), expected.prior)
    assert opened.result is result


def test_networks_run_once_an_image(opened, pipe, scene, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a network ran")

    words = "; ".join(scene[2])
    opened.segment(Asked(words))
    monkeypatch.setattr(pipe.graph, "queries_and_keys", refuse)
    monkeypatch.setattr(pipe.prior, "encode", refuse)
    changed = opened.segment(Asked(words, NerveConfig(alpha=0.5, steps=3), threshold=0.6))
    assert changed.last == 3
    assert (changed.label_map(3) == -1).any()
    assert (changed.label_map(1) == -1).any()


def test_clicks_alone_walk_with_their_own_settings(opened):
    opened.click(" cup ", 3.7, 60)
    opened.click("table", 60, 5)
    assert opened.clicks == [Click("cup", 3, 60), Click("table", 60, 5)]
    result = opened.segment(Asked())
    assert result.config == SEED_CONFIG
    assert result.out.labels == ("cup", "table")
    for step in range(SEED_CONFIG.steps + 1):
        labels = result.label_map(step)
        assert labels[60, 3] == 0
        assert labels[5, 60] == 1


def test_a_click_on_a_synonym_is_of_its_class_and_another_one_more(opened):
    opened.click("Kitten", 5, 5)
    opened.click("roof", 50, 50)
    assert opened.labels("cat, kitten; dog") == ["cat, kitten", "dog", "roof"]
    result = opened.segment(Asked("cat, kitten; dog"))
    assert result.out.labels == ("cat, kitten", "dog", "roof")
    assert result.out.label_map[5, 5] == 0


def test_the_later_click_on_a_pixel_counts_and_edges_are_inside(opened):
    opened.click("cup", 64, -1)
    opened.click("table", 63, 0)
    assert opened.clicks == [Click("table", 63, 0)]
    result = opened.segment(Asked())
    assert result.out.labels == ("table",)
    assert (result.out.label_map == 0).all()


def test_without_words_and_clicks_there_is_no_result(opened):
    opened.segment(Asked("grass"))
    assert opened.segment(Asked(" ; \n")) is None
    assert opened.result is None


def test_words_are_split():
    assert words_of("cat, kitten; dog\n grass ;;") == ["cat, kitten", "dog", "grass"]
    assert words_of("") == []


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked("cat; cat"), "stands twice"),
        (Asked("x" * 5000), "5000 characters"),
        (Asked(";".join(f"label {i}" for i in range(70))), "70 labels"),
        (Asked("cat", threshold=1.5), "from 0 to 1"),
        (Asked("cat", NerveConfig(steps=31)), "up to 30"),
    ],
)
def test_what_cannot_be_used_is_refused_and_the_result_stays(opened, asked, message):
    before = opened.segment(Asked("grass; sand"))
    with pytest.raises(InputError, match=message):
        opened.segment(asked)
    assert opened.result is before


def test_without_an_image_nothing_is_done(session):
    for act in (lambda: session.segment(Asked("cat")), lambda: session.click("cat", 1, 1)):
        with pytest.raises(InputError, match="there is no image"):
            act()


@pytest.mark.parametrize(
    ("label", "message"), [(" ", "has no label"), ("x" * 201, "too long"), ("a\0", "not text")]
)
def test_a_click_needs_a_label(opened, label, message):
    def act():
        opened.click(label, 1, 1)
        opened.segment(Asked())

    with pytest.raises(InputError, match=message):
        act()


def test_clicks_have_a_bound(opened, monkeypatch):
    monkeypatch.setattr(module, "MOST_CLICKS", 1)
    opened.click("cup", 1, 1)
    with pytest.raises(InputError, match="at most 1"):
        opened.click("cup", 2, 2)


def test_another_image_starts_anew(opened, picture):
    opened.click("cup", 1, 1)
    opened.segment(Asked())
    opened.open(picture("other.png"))
    assert opened.clicks == []
    assert opened.result is None
    assert opened.note == "other.png: 40 × 30 pixels"


def test_images_are_read_as_the_command_line_reads_them(session, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # Turned by a quarter.
    Image.new("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=exif)
    session.open(tmp_path / "turned.jpg")
    assert session.image.size == (30, 40)
    deep = np.full((30, 40), 65535, np.uint16)
    deep[:15] = 0
    Image.fromarray(deep).save(tmp_path / "deep.png")
    session.open(tmp_path / "deep.png")
    assert session.image.getextrema() == ((0, 255),) * 3
    Image.new("RGBA", (40, 30), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    session.open(tmp_path / "clear.png")
    assert session.image.getextrema() == ((255, 255),) * 3


def test_a_large_image_is_made_smaller_and_says_so(session, picture, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_SIDE", 100)
    session.open(picture("wide.png", size=(400, 200)))
    assert session.image.size == (100, 50)
    assert "400 × 200 pixels, shown and segmented at 100 × 50" in session.note


def test_200_megapixels_are_refused_from_the_header(session, picture, monkeypatch):
    monkeypatch.setattr(module, "load_image", lambda *a, **k: pytest.fail("it was decoded"))
    path = picture("huge.png", "1", (20_000, 10_000))
    with pytest.raises(InputError, match="huge.png: has 20000 × 10000 pixels, 200 million"):
        session.open(path)


def test_bad_files_are_named_without_paths_and_leave_the_image(opened, bad_images, tmp_path):
    (tmp_path / "bad").mkdir()
    before = opened.image
    for path in bad_images(tmp_path / "bad"):
        with pytest.raises(InputError) as caught:
            opened.open(path)
        assert str(caught.value).startswith(f"{path.name}: ")
        assert str(tmp_path) not in str(caught.value)
    assert opened.image is before


def test_pictures_have_names_of_their_own_and_few_stay(opened):
    paths = [opened.keep(opened.image) for _ in range(7)]
    assert len(set(paths)) == 7
    assert sorted(opened.folder.iterdir()) == sorted(paths[-module.PICTURES :])
    large = opened.keep(Image.new("RGB", (1200, 1200)))
    assert large.suffix == ".jpg"


def test_a_closed_session_leaves_nothing(opened):
    opened.keep(opened.image)
    opened.close()
    assert not opened.folder.exists()
    with pytest.raises(InputError, match="closed"):
        opened.keep(Image.new("RGB", (4, 4)))
    with pytest.raises(InputError, match="no image"):
        opened.segment(Asked("cat"))


def test_without_a_prior_there_are_clicks_alone(pipe, scene, tmp_path):
    from nerve_fast import NervePipeline

    alone = Session(NervePipeline(None, pipe.graph), AppSettings(words=False), tmp_path)
    alone.open(scene[0])
    alone.click("cup", 1, 1)
    assert alone.segment(Asked()).out.labels == ("cup",)
    with pytest.raises(InputError, match="no prior"):
        alone.segment(Asked("cat"))
