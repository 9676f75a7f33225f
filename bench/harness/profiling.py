"""``torch.profiler`` around a run: the steps that it names, and the attention that torch chose."""

import os
import re

import torch

from nerve_fast.bench.harness.machine import Run

# It tells on standard error of every profile.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")

STEP = "nerve_fast: "
"""How the pipeline's steps begin in a trace."""


def profiled(run: Run, on_gpu: bool = False, **options) -> torch.profiler.profile:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, **options) as profile:
        run()
        if on_gpu:
            torch.cuda.synchronize()
    return profile


def steps_of(profile: torch.profiler.profile) -> dict[str, float]:
    """Seconds of each step whose name begins with :data:`STEP`."""
    return {
        event.key.removeprefix(STEP): max(event.cpu_time_total, event.device_time_total) / 1e6
        for event in profile.key_averages()
        if event.key.startswith(STEP)
    }


def attention_of(profile: torch.profiler.profile) -> str:
    """The implementations of ``scaled_dot_product_attention`` that ran, such as ``flash``."""
    names = (event.key for event in profile.key_averages())
    found = (
        re.search(r"_scaled_dot_product_(attention_math|\w+?)(_attention|$)", n) for n in names
    )
    kinds = {match[1].replace("attention_", "") for match in found if match}
    return ", ".join(sorted(kinds - {"attention"}))
