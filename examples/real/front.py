"""Draw the README's first picture: ``python examples/real/front.py``.

The picture is what the command under it makes: the command is read from the README, carried out,
and its overlay set beside the photograph and its clicks.
"""

import re
import shlex
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

from nerve_fast.cli import main as cli
from nerve_fast.cli.seeds import places
from nerve_fast.imaging.visualize import palette, save_picture

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "plots" / "front.jpg"
GAP = 8
RADIUS = 6


def command() -> list[str]:
    """The words of the README's first command, ``nerve-fast`` left out."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^(nerve-fast segment .*?)```", text, re.DOTALL | re.MULTILINE)
    words = shlex.split(block[1].replace("\\\n", " "))
    return [str(Path(word).expanduser()) if word.startswith("~") else word for word in words[1:]]


def main() -> None:
    words = command()
    path, points = words[1], words[words.index("--points") + 1]
    with tempfile.TemporaryDirectory() as folder:
        assert cli.main([*words, "-o", folder]) == 0
        overlay = Image.open(Path(folder) / f"{Path(path).stem}.overlay.png").convert("RGB")
    photograph = clicked(Image.open(path).convert("RGB"), points)
    size = (photograph.width + GAP + overlay.width, max(photograph.height, overlay.height))
    picture = Image.new("RGB", size, "white")
    picture.paste(photograph, (0, 0))
    picture.paste(overlay, (photograph.width + GAP, 0))
    save_picture(picture, PICTURE)
    print(f"{PICTURE} is what the README's first command makes")


def clicked(picture: Image.Image, points: str) -> Image.Image:
    """A photograph with the clicks of ``--points`` in the colours of the overlay."""
    draw = ImageDraw.Draw(picture)
    given = places("--points", points, 2)
    for colour, clicks in zip(palette(len(given)).tolist(), given.values(), strict=True):
        for x, y in clicks:
            box = (x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS)
            draw.ellipse(box, fill=tuple(colour), outline="white", width=2)
    return picture


if __name__ == "__main__":
    main()
