"""The command ``data``: what is there of a data set, and COCO-Object's label maps."""

from pathlib import Path

from nerve_fast.cli.flags import add_max_pixels
from nerve_fast.datasets.vocabulary import NAMES


def add_data(commands) -> None:
    """Add ``data check`` and ``data coco-object`` to the subparsers of the command line."""
    data = commands.add_parser("data", help="check a data set; make COCO-Object's label maps")
    inner = data.add_subparsers(required=True, metavar="COMMAND")
    _add_check(inner)
    _add_coco_object(inner)


def _add_check(commands) -> None:
    command = commands.add_parser(
        "check",
        help="say what is missing or malformed before anything runs",
        description="Reads all images and masks. Exit code 2 where there is a problem.",
    )
    command.set_defaults(run=_check)
    command.add_argument(
        "name",
        choices=(*NAMES, "folder"),
        metavar="NAME",
        help=f"{', '.join(NAMES)}, or folder: images/, masks/ and names.txt",
    )
    command.add_argument(
        "root", type=Path, metavar="ROOT", help="what mmsegmentation calls data_root"
    )
    add_max_pixels(command)


def _check(options) -> int:
    from nerve_fast.datasets.check import check

    return check(options.name, options.root, options.max_pixels)


def _add_coco_object(commands) -> None:
    command = commands.add_parser(
        "coco-object",
        help="make COCO-Object's label maps",
        description="Writes annotations/val2017/*_instanceTrainIds.png; goes on where it stopped.",
    )
    command.set_defaults(run=_coco_object)
    command.add_argument("root", type=Path, metavar="ROOT", help="of COCO, with annotations/")
    command.add_argument(
        "--source",
        choices=("instances", "stuff"),
        default="instances",
        help="instances_val2017.json (default), or COCO-Stuff's *_labelTrainIds.png, which the "
        "published figures are of",
    )


def _coco_object(options) -> int:
    from nerve_fast.datasets.coco_object import convert

    return convert(options.root, options.source)
