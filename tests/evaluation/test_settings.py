import subprocess
import sys

import pytest
import torch

import nerve_fast as nf
from nerve_fast.errors import InputError, SettingError
from nerve_fast.evaluation import AblationSettings, EvaluationSettings, ModelSettings
from nerve_fast.evaluation.method import refuse_unread


def test_evaluation_is_there_without_transformers():
    code = (
        "import sys, nerve_fast as nf; assert 'transformers' not in sys.modules; "
        "nf.evaluation; assert 'transformers' not in sys.modules; print(nf.evaluation.run.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "run\n", done.stderr


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        ("limit is 0; expected 1 or more", {"limit": 0}),
        ("draw is -1; expected 0 or more", {"draw": -1}),
        ("preset is 'x'; expected one of", {"preset": "x"}),
        ("refiner is 'x'; expected one of", {"refiner": "x"}),
    ],
)
def test_settings_are_checked_when_made(message, settings):
    with pytest.raises(InputError, match=f"^{message}"):
        EvaluationSettings(dataset="tiny", **settings)


def test_settings_of_a_wrong_type_are_refused():
    for settings in ({"limit": 1.5}, {"limit": True}, {"models": {}}, {"config": None}):
        with pytest.raises(TypeError, match=next(iter(settings))):
            EvaluationSettings(dataset="tiny", **settings)
    for settings in ({"dtype": "float16"}, {"layers": "up"}, {"seed": "1"}, {"timestep": 1.0}):
        with pytest.raises(TypeError, match=next(iter(settings))):
            ModelSettings(**settings)
    with pytest.raises(TypeError, match="names"):
        AblationSettings(dataset="tiny", names="steps")


def test_models_are_checked_when_made():
    cases = {
        "seed is -1": {"seed": -1},
        "seed is 9223372036854775808": {"seed": 2**63},
        "timestep is -3": {"timestep": -3},
        "backend is 'cuda'; expected one of auto": {"backend": "cuda"},
        "graph is a, which .*; leave out diffusion": {"graph": "a", "diffusion": "b"},
        "graph is a, which .*; leave out timestep": {"graph": "a", "timestep": 5},
    }
    for message, settings in cases.items():
        with pytest.raises(SettingError, match=f"^{message}"):
            ModelSettings(**settings)
    assert ModelSettings(layers=["a"], dtype=torch.float16).layers == ("a",)
    assert hash(ModelSettings()) == hash(ModelSettings())


def test_ablations_are_checked_when_made():
    for message, settings in {
        "ablation is 'x'": {"names": ["x"]},
        "cache_size is 'plenty'": {"names": ["steps"], "cache_size": "plenty"},
        "the ablation timestep varies": {
            "names": ["timestep"],
            "models": ModelSettings(graph="a"),
        },
        "the ablation steps varies steps": {
            "names": ["alpha", "steps"],
            "config": nf.NerveConfig(steps=None),
        },
        "table2 compares": {"names": ["table2"], "config": nf.NerveConfig(beta=1)},
    }.items():
        with pytest.raises(InputError, match=f"^{message}"):
            AblationSettings(dataset="tiny", **settings)


def test_messages_name_settings_or_flags():
    with pytest.raises(SettingError) as raised:
        refuse_unread(ModelSettings(seed=2), nf.NerveConfig(self_affinity=0.5), "pamr")
    assert str(raised.value).startswith("the refiner pamr does not read seed, self_affinity;")
    flags = raised.value.with_flags()
    assert flags.startswith("the refiner pamr does not read --seed, --self-affinity;")
    assert flags.endswith("that reads all of it: --refiner walk")
    error = SettingError("{root} is {0}; expected {1}", "/a/{b}/{root}", "{x}")
    assert error.with_flags() == "--root is /a/{b}/{root}; expected {x}"


def test_a_graph_is_read_by_those_that_walk_alone():
    models = ModelSettings(graph="facebook/dinov2-base")
    for refiner in ("none", "pamr"):
        with pytest.raises(SettingError, match=f"refiner {refiner} does not read graph"):
            refuse_unread(models, nf.NerveConfig(), refiner)
    refuse_unread(models, nf.NerveConfig(), "walk")


def test_an_evaluation_is_a_call_in_python(tmp_path, capsys):
    settings = EvaluationSettings(
        dataset="tiny",
        models=ModelSettings(models="tiny", device="cpu"),
        refiner="none",
        limit=1,
        output=tmp_path / "out",
    )
    results = nf.evaluation.run(settings)
    assert results.folder == tmp_path / "out"
    assert results.figures["images"] == 1
    assert 0 < results.figures["miou"] <= 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
