"""Write docs/real-photographs.md and its pictures: ``python examples/real/page.py``.

Everything is computed, or taken from the cache where an earlier run computed it.
"""

import argparse
import sys
from pathlib import Path

import tables
from coarse import coarse_trial
from photographs import Photograph, labelme, photographs
from pictures import strip
from segmenters import NEAREST, SEGMENTERS, WALKER
from trials import click_sets, trial
from tuning import SWEPT, chosen, chosen_coarse, empty_rows, swept

import nerve_fast as nf
from nerve_fast.errors import InputError
from nerve_fast.utils.files import written_whole

ROOT = Path(__file__).parents[2]
SHOWN_COUNT, SHOWN_SEED = 3, 0
SHOWN = {
    "walk": "qk",
    "nearest neighbour": NEAREST,
    "random_walker": WALKER,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the page of real photographs.")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder of the page")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="these photographs only, for a trial"
    )
    arguments = parser.parse_args()
    try:
        write(arguments.output, arguments.only)
    except InputError as error:
        sys.exit(f"page: {error}")


def write(output: Path, only: list[str] | None) -> None:
    everything = [one for one in photographs() if only is None or one.name in only]
    tuning = [one for one in everything if one.half == "tune"]
    reporting = [one for one in everything if one.half == "report"]
    if not (tuning and reporting):
        raise InputError("of each half at least one photograph is needed")
    settings = {}
    for name in SEGMENTERS:
        say(f"choosing settings: {name}")
        settings[name] = chosen(name, tuning)
    coarse_settings = chosen_coarse(tuning)
    others, missing = [], None
    try:
        others = labelme() if only is None else []
    except InputError as error:
        missing = str(error)
    empty = {value: empty_rows("qk", tuning, value) for value in SWEPT["temperature"]}
    parts = [
        tables.introduction(everything),
        tables.results("On the reporting half", reporting, trials(reporting, settings)),
        tables.differences(reporting, trials(reporting, settings)),
        tables.results("On the tuning half", tuning, trials(tuning, settings)),
    ]
    if others:
        parts.append(tables.results(tables.OTHERS, others, trials(others, settings)))
    else:
        parts.append(tables.without_others(missing))
    parts += [
        tables.settings(settings, coarse_settings, nf.NerveConfig()),
        tables.sweep(swept("qk", tuning, settings["qk"]), settings["qk"], empty),
        tables.coarse(reporting, coarse_trials(reporting, coarse_settings), coarse_settings),
        pictures(everything, settings, output / "plots"),
    ]
    with written_whole(output / "real-photographs.md") as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")


def trials(some: list[Photograph], settings: dict[str, dict]) -> dict:
    """By segmenter and by ``plain`` or ``refined``, the trials of the photographs in order."""
    found = {}
    for name in SEGMENTERS:
        say(f"{name}: {len(some)} photographs")
        each = [trial(name, one, settings[name]) for one in some]
        for kind in ("plain", "refined"):
            found[name, kind] = [one[kind] for one in each]
    return found


def coarse_trials(some: list[Photograph], chosen_settings: dict) -> dict:
    """By what the settings are, the trials of the photographs in their order."""
    say("coarse priors")
    by_title = {"default settings": {}, "settings of the tuning half": chosen_settings}
    return {title: [coarse_trial(one, how) for one in some] for title, how in by_title.items()}


def pictures(everything: list[Photograph], settings: dict, folder: Path) -> str:
    """Strips of all photographs that may be shown, worst first; their section of the page."""
    ways = {title: (name, settings[name]) for title, name in SHOWN.items()}
    scored = sorted(everything, key=lambda one: shown_score(one, settings["qk"]))
    lines = []
    for one in scored:
        name = f"real-{one.name}.jpg"
        score = f"{100 * shown_score(one, settings['qk']):.1f}"
        title = f"{one.name}, {one.half} half: the walk's mIoU is {score}"
        if one.mask.may_be_shown:
            say(f"picture of {one.name}")
            seeds = click_sets(one)[str(SHOWN_COUNT)][SHOWN_SEED]
            strip(one, seeds, ways, folder / name)
            lines += [f"**{title}**", "", f"![{title}](plots/{name})", ""]
        else:
            lines += [f"**{title}**; the licence of the photograph is not known: no picture.", ""]
    return tables.pictures("\n".join(lines), SHOWN_COUNT, SHOWN_SEED)


def shown_score(photograph: Photograph, settings: dict) -> float:
    """mIoU of the clicks that are shown."""
    return trial("qk", photograph, settings)["plain"][str(SHOWN_COUNT)][0][SHOWN_SEED]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
