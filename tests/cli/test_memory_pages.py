"""Commands keep large tensors in large pages, where the system gives them on request."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
CODE = """
import contextlib, re
from nerve_fast.cli.main import main
with contextlib.suppress(SystemExit):
    main(["--version"])
import torch
kept = torch.ones(1 << 24)
print(re.search(r"AnonHugePages: +([0-9]+)", open("/proc/self/smaps_rollup").read())[1])
"""


@pytest.mark.skipif(
    not SETTING.exists() or "[madvise]" not in SETTING.read_text(),
    reason="large pages are not given on request here",
)
@pytest.mark.parametrize(("set_by_user", "used"), [(None, True), ("0", False)])
def test_large_tensors_are_in_large_pages(set_by_user, used):
    environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
    if set_by_user:
        environment["THP_MEM_ALLOC_ENABLE"] = set_by_user
    told = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, check=True, capture_output=True, text=True
    )
    kilobytes = int(told.stdout.split()[-1])
    assert (kilobytes > 32 << 10) == used, kilobytes
