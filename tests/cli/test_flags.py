"""What flags say reaches the settings."""

import argparse
import re
import subprocess
import sys

import pytest

from nerve_fast import InputError, NervePipeline
from nerve_fast.cli import flags
from nerve_fast.datasets import VOCABULARIES, words
from nerve_fast.evaluation.presets import clip_of
from nerve_fast.pipeline.loading import DEFAULT_CLIP, DEFAULT_DIFFUSION
from nerve_fast.priors import ENTRIES


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


def help_of(add, flag):
    parser = argparse.ArgumentParser()
    add(parser)
    return parser._option_string_actions[flag].help


def test_help_lists_all_priors_and_their_networks():
    """By hand: the registry imports transformers, which help must not wait for."""
    listed = help_of(flags.add_prior, "--prior").replace(" (default)", "").replace(" or ", ", ")
    assert sorted(listed.split(", ")) == sorted(ENTRIES)
    networks = re.findall(r"([^()]*)\(([a-z-]+)\)", help_of(flags.add_prior, "--prior-network"))
    assert {name: set(re.findall(r"(\w+)=", what)) for what, name in networks} == {
        name: set(entry.networks) for name, entry in ENTRIES.items() if entry.networks
    }


def test_help_and_docstrings_list_all_vocabularies_and_priors():
    assert ", ".join(VOCABULARIES) in help_of(flags.add_changes, "--vocabulary")
    assert set(re.findall(r'``"([a-z-]+)"``', words.__doc__)) == {*VOCABULARIES, "bed"}
    text = NervePipeline.from_pretrained.__doc__.split("prior: one of ")[1]
    listed = re.findall(r"``([a-z-]+)``", text.split(":class:")[0])
    assert sorted(listed) == sorted(ENTRIES)


def test_flags_are_known_before_transformers_is():
    """It takes seconds, which help and a mistyped flag would wait for."""
    code = "import sys, nerve_fast.cli.main as m; m._parser(); print('transformers' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.strip() == "False"
