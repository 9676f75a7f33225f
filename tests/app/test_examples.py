from PIL import Image

from nerve_fast.app import examples as module
from nerve_fast.app.examples import examples


def test_scenes_ship_with_words_and_clicks_on_what_they_name():
    found = examples()
    assert len(found) == module.SCENES
    for example in found:
        image = example.image()
        assert max(example.thumbnail.width, example.thumbnail.height) <= max(module.THUMBNAIL)
        words = example.words.split("; ")
        for label, x, y in example.clicks:
            assert label in words
            assert 0 <= x < image.width
            assert 0 <= y < image.height


def test_photographs_are_shown_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("NERVE_FAST_CACHE", str(tmp_path))
    folder = tmp_path / "real" / "photographs"
    folder.mkdir(parents=True)
    Image.new("RGB", (50, 40)).save(folder / "cup.jpg")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.dat").write_bytes(b"no image")
    last = examples()[-1]
    assert last.name == "cup.jpg"
    assert last.image().size == (50, 40)
    assert len(examples()) == module.SCENES + 1
