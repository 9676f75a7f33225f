"""``python -m bench.large``: large images and many of them, judged against what is promised.

Every job runs in a process of its own, whose peak of resident memory is its own too. What was found
goes to ``bench/results/large/MACHINE.json``, from which ``docs/large-images.md`` is rendered.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from nerve_fast.bench.cases import dtypes, keys, large, shared
from nerve_fast.bench.harness.isolated import isolated
from nerve_fast.bench.harness.machine import Machine
from nerve_fast.bench.pages.large_report import FOLDER, NEEDED, PICTURES, render
from nerve_fast.utils.files import cache_folder, written_whole


def main() -> int:
    # As the command line has it.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    parser = argparse.ArgumentParser(prog="python -m bench.large", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="JOB", help="the others keep their results")
    options = parser.parse_args()
    machine = Machine("cpu")
    path = FOLDER / f"{machine.slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    document = (
        json.loads(path.read_text())
        if path.exists() and options.only
        else {"jobs": {}, "commits": {}}
    )
    about = machine.describe()
    dino = cache_folder() / "real" / "dinov2-small"
    photograph = cache_folder() / "real" / "photographs" / "astronaut.png"
    document["machine"] = about
    with tempfile.TemporaryDirectory(prefix="nerve-fast-large-") as folder:
        scenes = {side: f"{folder}/{side}.png" for side in (512, 1024, 4096)}
        PICTURES.mkdir(parents=True, exist_ok=True)
        jobs = {
            "large shift": (large.large, scenes[4096], "shift", None),
            "large softmax": (large.large, scenes[4096], "softmax", str(PICTURES / "large.png")),
            "keys, scene": (keys.on_scene, scenes[1024]),
            "keys, photograph": (keys.on_photograph, str(photograph), str(dino), 3584),
            "growth": (keys.growth, 256, 1024),
            "entropy rows": (large.rows_of_entropy, scenes[512]),
            "full size 2048": (large.full_size, 2048, "shift"),
            "full size 512": (large.full_size, 512, "shift"),
            "full size 512, softmax": (large.full_size, 512, "softmax"),
            "memory, fast": (large.full_size_once, False),
            "memory, reference": (large.full_size_once, True),
            "fast against reference": (large.fast_against_reference,),
            "hundred": (large.hundred,),
            "shared memory": (shared.memory,),
            "shared prediction": (shared.prediction,),
            "rows": (shared.rows,),
            "bfloat16, scenes": (dtypes.on_scenes,),
            "bfloat16, photographs": (dtypes.on_photographs, str(photograph.parent), str(dino)),
            "bfloat16, seconds": (dtypes.seconds,),
            "seams": (large.seams, str(PICTURES / "seams.png")),
        }
        for name, (job, *arguments) in jobs.items():
            if options.only and name not in options.only:
                continue
            if str(dino) in arguments and not (dino.exists() and photograph.exists()):
                print(f"{name}: left out, as {dino} and {photograph} come with `make real`")
                continue
            for side, file in scenes.items():
                if file in arguments and not Path(file).exists():
                    isolated(large.drawn, file, side)
            document["jobs"][name] = isolated(job, *arguments)
            document["commits"][name] = f"{about['commit']}, {about['date'][:10]}"
            print(f"{name}: {json.dumps(document['jobs'][name])}", flush=True)
            with written_whole(path) as temporary:
                temporary.write_text(json.dumps(document, indent=1) + "\n")
    missing = [name for name in jobs if name not in document["jobs"]]
    if missing:
        print(f"not judged, as these have not run: {', '.join(missing)}")
    if NEEDED & set(missing):
        return 1
    judged = render()
    print("\n".join(map(str, judged)))
    return 0 if not missing and all(bar.met for bar in judged) else 1


if __name__ == "__main__":
    sys.exit(main())
