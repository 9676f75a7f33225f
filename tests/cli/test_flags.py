"""What flags say reaches the settings."""

import argparse

import pytest

from nerve_fast import InputError
from nerve_fast.cli import flags
from nerve_fast.evaluation.presets import clip_of
from nerve_fast.pipeline.loading import DEFAULT_CLIP, DEFAULT_DIFFUSION


def models_of(*arguments, preset=False, prior=False):
    parser = argparse.ArgumentParser()
    flags.add_models(parser)
    if preset:
        parser.add_argument("--preset", default="clearclip")
    if prior:
        flags.add_prior(parser)
    return flags.models_of(parser.parse_args(arguments))


def test_models_of_the_hub_are_pinned_by_revision():
    models = models_of("--revision", "clip=abc", "diffusion=v2")
    assert (models.clip, models.diffusion) == (f"{DEFAULT_CLIP}@abc", f"{DEFAULT_DIFFUSION}@v2")
    models = models_of("--clip", "a/b", "--revision", "clip=fp16")
    assert (models.clip, models.diffusion) == ("a/b@fp16", None)
    models = models_of("--graph", "a/b", "--revision", "graph=main")
    assert models.graph == "a/b@main"
    models = models_of("--revision", "clip=abc", preset=True)
    assert models.clip == f"{clip_of('clearclip')}@abc"
    models = models_of("--revision", "clip=abc", "--prior", "groupvit", prior=True)
    assert models.clip == "nvidia/groupvit-gcc-yfcc@abc"


def test_models_that_are_not_of_the_hub_are_not_pinned(tmp_path):
    for arguments in (
        ["--models", "tiny", "--revision", "clip=abc"],
        ["--clip", str(tmp_path), "--revision", "clip=abc"],
        ["--revision", "graph=abc"],
    ):
        with pytest.raises(InputError, match="--revision pins (clip|graph), which is no model of"):
            models_of(*arguments)


@pytest.mark.parametrize("text", ["abc", "clip=", "vae=abc", "=abc"])
def test_a_revision_of_nothing_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        models_of("--revision", text)
    assert f"{text!r} is not clip=REV, diffusion=REV or graph=REV" in capsys.readouterr().err
