"""The page in headless Chromium, served by ``nerve-fast app`` as users start it."""

import io
import itertools
import json
import re
import time
import urllib.request
import zipfile

import numpy as np
import pytest
from PIL import Image

from nerve_fast.app import server
from nerve_fast.app import session as limits
from nerve_fast.cli.main import main
from nerve_fast.tiny.scenes import generate
from tools import browser

pytest.importorskip("gradio")
pytest.importorskip("selenium")

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = pytest.mark.browser

WORDS = "#words textarea, #words input"


@pytest.fixture(scope="module")
def address():
    if browser.missing():
        pytest.skip(f"this machine has no {' and no '.join(browser.missing())}")
    with browser.served(["--models", "tiny", "--device", "cpu", "--port", "7911"]) as url:
        yield url


@pytest.fixture(scope="module")
def driver(address):
    with browser.opened() as driver:
        yield driver


@pytest.fixture
def page(driver, address):
    return Page(driver, address)


@pytest.fixture(scope="module")
def scene_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("scene") / "my scene.png"
    generate(1_000_001)[0].save(path)
    return path


class Page:
    """What a person does with the page, and sees of it."""

    def __init__(self, driver, address):
        self.driver = driver
        self._scale = 0
        driver.get(address)
        self.wait(lambda: self.all("#gallery .thumbnail-item"))

    def wait(self, what, seconds=60):
        return WebDriverWait(self.driver, seconds, 0.05).until(lambda driver: what())

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.wait(lambda: self.all(selector))[0]

    @property
    def source(self):
        found = self.all("#picture img")
        return found[0].get_attribute("src") if found else ""

    @property
    def message(self):
        return self.one("#message").text

    @property
    def alert(self):
        return self.wait(lambda: self.all("#message [role=alert]"))[0].text

    @property
    def legend(self):
        """``{label: (area in percent, confidence)}``."""
        return self.driver.execute_script(
            "return Object.fromEntries([...document.querySelectorAll('.nf-legend tbody tr')].map("
            "row => [row.cells[1].innerText, [row.cells[2].innerText, row.cells[3].innerText]]))"
        )

    def after(self, act):
        """Does something and waits for the next picture."""
        before = self.source
        act()
        self.wait(lambda: self.source not in ("", before))
        self.wait(lambda: self.scale)

    @property
    def scale(self):
        """How much larger the picture is than the image, whose size the page says last."""
        sizes = re.findall(r"(\d+) × \d+", self.message)
        if sizes:
            natural = self.driver.execute_script(
                "return document.querySelector('#picture img').naturalWidth"
            )
            self._scale = natural // int(sizes[-1])
        return self._scale

    def pixels(self):
        """The picture as it is served, ``(H, W, 3)``, at the size of the image."""
        scale = self.scale
        with urllib.request.urlopen(self.source) as answer:
            picture = Image.open(io.BytesIO(answer.read())).convert("RGB")
        return np.asarray(picture).astype(int)[scale // 2 :: scale, scale // 2 :: scale]

    def upload(self, path):
        self.one("#upload input[type=file]").send_keys(str(path))

    def type(self, selector, text):
        field = self.one(selector)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.DELETE, text, Keys.ENTER)

    def number(self, name, value):
        """Types a number beside a slider, digit by digit."""
        self.type(f"#{name} input[type=number]", str(value))

    def slide(self, name, value):
        """Moves a slider, in one go."""
        self.driver.execute_script(
            "const [slider, value] = arguments; slider.value = value;"
            "slider.dispatchEvent(new Event('input', {bubbles: true}))",
            self.one(f"#{name} input[type=range]"),
            value,
        )

    def press(self, selector):
        button = self.one(selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()

    def click(self, x, y):
        """On a pixel of the image."""
        scale = self.scale
        image = self.one("#picture img")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", image)
        size = self.driver.execute_script(
            "const i = arguments[0]; return [i.naturalWidth, i.naturalHeight]", image
        )
        box = image.rect
        # The picture lies in the middle of its box, as large as it fits.
        fit = min(box["width"] / size[0], box["height"] / size[1], 1)
        moved = [
            round(((at + 0.5) * scale - side / 2) * fit)
            for at, side in zip((x, y), size, strict=True)
        ]
        ActionChains(self.driver).move_to_element_with_offset(image, *moved).click().perform()


def test_words_segment_an_upload_as_the_pipeline_does(page, scene_file, pipe):
    page.after(lambda: page.upload(scene_file))
    assert "my scene.png: 128 × 128 pixels" in page.message
    assert page.legend == {}
    names = generate(1_000_001)[2]
    page.after(lambda: page.type(WORDS, "; ".join(names)))
    out = pipe(Image.open(scene_file), names)
    areas = {
        name: f"{(out.label_map == number).float().mean():.1%}" for number, name in enumerate(names)
    }
    assert {name: area for name, (area, _) in page.legend.items()} == areas
    for number, name in enumerate(names):
        if (out.label_map == number).any():
            assert page.legend[name][1].strip() == f"{out.confidences[number]:.2f}"


def test_settings_change_the_picture_at_once(page):
    page.after(page.all("#gallery .thumbnail-item")[1].click)
    seen = [(page.legend, page.pixels())]
    for name, value in (("alpha", 0.2), ("beta", 1), ("temperature", 0.3), ("threshold", 0.8)):
        page.after(lambda name=name, value=value: page.slide(name, value))
        seen.append((page.legend, page.pixels()))
    for (before, _), (after, _) in itertools.pairwise(seen):
        assert before != after
    assert "no label" in seen[-1][0]
    page.after(lambda: page.press("#reset"))
    page.wait(lambda: page.legend == seen[0][0])
    assert (page.pixels() == seen[0][1]).all()


def test_the_slider_walks_step_by_step_and_follows_its_length(page):
    page.after(page.all("#gallery .thumbnail-item")[2].click)
    slider = page.one("#step input[type=range]")
    last = page.legend
    page.after(lambda: slider.send_keys(Keys.HOME))
    prior = page.legend
    assert prior != last
    page.after(lambda: slider.send_keys(Keys.RIGHT))
    assert page.legend not in (prior, last)
    page.after(lambda: slider.send_keys(Keys.END))
    assert page.legend == last
    for length in (15, 3, 0):
        page.after(lambda length=length: page.slide("length", length))
        page.wait(lambda length=length: slider.get_attribute("value") == str(length))
    assert page.legend == prior
    page.after(lambda: page.slide("length", 15))
    page.after(lambda: page.slide("step", 12))
    page.after(lambda: page.press("#kind input[value=confidence]"))
    assert slider.get_attribute("value") == "12"


def test_clicks_label_what_they_are_on(page, scene_file):
    page.after(lambda: page.upload(scene_file))
    image = page.pixels()
    clicks = (("cup", 30, 20), ("table", 100, 110), ("cup", 32, 60))
    for label, x, y in clicks:
        page.type("#label input", label)
        page.after(lambda x=x, y=y: page.click(x, y))
    assert set(page.legend) == {"cup", "table"}
    page.after(lambda: page.press("#kind input[value=image]"))
    changed = np.argwhere((page.pixels() != image).any(-1))
    for _, x, y in clicks:
        near = changed[(np.abs(changed - (y, x)) <= 6).all(1)]
        assert np.abs(near.mean(0) - (y, x)).max() <= 1.5
    page.after(lambda: page.press("#undo"))
    page.after(lambda: page.press("#undo"))
    assert page.legend == {"cup": ["100.0%", page.legend["cup"][1]]}
    assert "With one label" in page.message
    page.after(lambda: page.press("#clear"))
    assert page.legend == {}
    assert (page.pixels() == image).all()


def test_every_export_is_downloaded(page, scene_file):
    page.after(lambda: page.upload(scene_file))
    page.after(lambda: page.type(WORDS, "grass; sand; ball"))
    page.press("#format input")
    options = [one.text for one in page.wait(lambda: page.all("[role=option]"))]
    for word in ("PNG", "npz", "coco", "polygons", "masks", "voc", "CSV", "zip"):
        assert any(word in option for option in options), word
    page.all("[role=option]")[-1].click()
    page.press("#make")
    link = page.one("#file a[href*='.zip']").get_attribute("href")
    with urllib.request.urlopen(link) as answer:
        archive = zipfile.ZipFile(io.BytesIO(answer.read()))
    assert {"coco.json", "areas.csv", "my_scene.npz", "my_scene.labels.png"} <= {
        *archive.namelist()
    }
    assert json.loads(archive.read("coco.json"))["images"][0]["width"] == 128
    page.after(lambda: page.slide("threshold", 0.9))
    page.wait(lambda: not page.all("#file a[href*='.zip']"))


def test_mistakes_are_sentences_and_leave_what_was_there(page, scene_file, tmp_path):
    page.press("#make")
    assert "nothing to download" in page.alert
    page.type(WORDS, "grass")
    page.wait(lambda: "there is no image" in page.message)
    page.after(lambda: page.upload(scene_file))
    before = page.source
    (tmp_path / "broken.png").write_bytes(b"no image")
    page.upload(tmp_path / "broken.png")
    assert page.alert.startswith("broken.png: not an image")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "huge.png")
    page.upload(tmp_path / "huge.png")
    page.wait(lambda: "huge.png: has 20000 × 10000 pixels, 200 million" in page.message)
    page.type(WORDS, "cat; cat")
    page.wait(lambda: "stands twice" in page.message)
    page.type("#label input", " ")
    page.click(10, 10)
    page.wait(lambda: "no label" in page.message)
    assert page.source == before
    assert "Traceback" not in page.driver.page_source
    page.after(lambda: page.type(WORDS, "grass; sand"))
    assert not page.all("#message [role=alert]")


def test_what_is_asked_while_something_is_done_is_done_after_it(page):
    scenes = page.all("#gallery .thumbnail-item")[:4]
    for scene in scenes:
        scene.click()
    page.wait(lambda: "scene 4" in page.message)
    assert set(page.legend) == set(page.one(WORDS).get_attribute("value").split("; "))


def test_numbers_out_of_range_do_no_harm(page):
    page.after(page.all("#gallery .thumbnail-item")[0].click)
    page.number("threshold", 7)
    page.wait(lambda: page.all(".toast-body, #message [role=alert]") or "no label" in page.legend)
    page.after(lambda: page.number("threshold", 0.5))


def test_formats_are_read_by_the_package(page, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 30), "red").save(tmp_path / "turned.jpg", exif=exif)
    page.after(lambda: page.upload(tmp_path / "turned.jpg"))
    assert page.pixels().shape == (60, 30, 3)
    deep = np.full((30, 40), 65535, np.uint16)
    deep[:15] = 0
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    page.after(lambda: page.upload(tmp_path / "deep.tif"))
    assert set(np.unique(page.pixels())) == {0, 255}
    Image.new("RGBA", (40, 30), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    page.after(lambda: page.upload(tmp_path / "clear.png"))
    assert (page.pixels() == 255).all()


def test_two_sessions_at_once_do_not_meet(page, address, scene_file):
    with browser.opened(width=480) as driver:
        other = Page(driver, address)
        page.after(lambda: page.upload(scene_file))
        other.after(other.all("#gallery .thumbnail-item")[3].click)
        # Both are asked before either has answered.
        before = page.source, other.source
        page.type(WORDS, "grass; ball")
        other.type(WORDS, "sand; fish; water")
        page.wait(lambda: page.source != before[0])
        other.wait(lambda: other.source != before[1])
        assert set(page.legend) == {"grass", "ball"}
        assert set(other.legend) == {"sand", "fish", "water"}
        page.click(64, 64)
        page.wait(lambda: "thing" in page.legend)
        assert "thing" not in other.legend
        gone = other.source
    # The tab is closed: what it had is removed.
    deadline = time.monotonic() + 30
    while _served(gone) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _served(gone)
    assert _served(page.source)


def _served(url):
    try:
        with urllib.request.urlopen(url) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.mark.parametrize("width", [1280, 420])
def test_everything_is_within_the_window(driver, address, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page = Page(driver, address)
    page.after(page.all("#gallery .thumbnail-item")[0].click)
    outside = driver.execute_script(
        "return [...document.querySelectorAll('button, input, textarea, img, table')].filter(e => "
        "e.offsetParent && (e.getBoundingClientRect().right > innerWidth || "
        "e.getBoundingClientRect().left < 0)).map(e => e.outerHTML)"
    )
    assert outside == []
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_nothing_comes_from_elsewhere(driver, address):
    driver.get_log("performance")
    page = Page(driver, address)
    page.after(page.all("#gallery .thumbnail-item")[0].click)
    messages = [json.loads(one["message"])["message"] for one in driver.get_log("performance")]
    urls = [
        one["params"]["request"]["url"]
        for one in messages
        if one["method"] == "Network.requestWillBeSent"
    ]
    assert len(urls) > 10
    assert [url for url in urls if not re.match(rf"data:|blob:|{re.escape(address)}", url)] == []
    with urllib.request.urlopen(address) as answer:
        assert answer.headers["content-security-policy"].startswith("default-src 'self'")


def test_files_of_other_kinds_are_refused_in_a_sentence(page, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    page.upload(tmp_path / "notes.txt")
    assert page.alert.startswith("notes.txt: not an image")
    (tmp_path / "large.png").write_bytes(bytes(server.LARGEST_FILE + 1))
    page.upload(tmp_path / "large.png")
    page.wait(lambda: "exceed the maximum allowed size" in page.one(".toast-body").text)


def test_without_words_there_are_clicks_alone(driver):
    with browser.served(["--models", "tiny", "--no-words", "--device", "cpu"]) as address:
        page = Page(driver, address)
        assert not page.all(WORDS)
        page.after(page.all("#gallery .thumbnail-item")[0].click)
        assert len(page.legend) > 1
        assert page.one("#length input[type=number]").get_attribute("value") == "3"
        page.after(lambda: page.press("#clear"))
        assert page.legend == {}


def test_a_port_that_is_taken_is_said(address, capsys):
    port = address.rstrip("/").rpartition(":")[2]
    assert main(["app", "--models", "tiny", "--device", "cpu", "--port", port]) == 2
    assert f"127.0.0.1 cannot be listened on at port {port}" in capsys.readouterr().err


def test_the_picture_of_a_large_image_is_small(page, tmp_path):
    Image.effect_noise((3000, 1000), 60).save(tmp_path / "large.jpg")
    page.after(lambda: page.upload(tmp_path / "large.jpg"))
    assert page.pixels().shape == (limits.LONGEST_SIDE // 3, limits.LONGEST_SIDE, 3)
    page.type("#label input", "left")
    page.after(lambda: page.click(5, 5))
    page.type("#label input", "right")
    page.after(lambda: page.click(limits.LONGEST_SIDE - 5, 500))
    assert set(page.legend) == {"left", "right"}
