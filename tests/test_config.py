import dataclasses
import json
import re
import warnings
from fractions import Fraction

import numpy as np
import pytest

from nerve_fast import NerveConfig
from nerve_fast.normalization import NORMALIZATIONS, Normalization


def test_config_survives_json():
    config = NerveConfig(
        alpha=0.5, steps=np.int64(3), normalization="l1", temperature=np.float32(0.5)
    )
    assert NerveConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_defaults_are_those_of_the_design():
    assert NerveConfig().to_dict() == {
        "alpha": 0.9,
        "beta": 0.5,
        "steps": 10,
        "radius": 1,
        "self_affinity": 1.0,
        "sharpness": 1.0,
        "normalization": "softmax",
        "temperature": 0.05,
        "global_keys": None,
        "tolerance": 1e-4,
    }


def test_config_is_frozen_and_replace_gives_a_checked_copy():
    config = NerveConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.alpha = 0.1
    assert config.replace(alpha=0.1) == NerveConfig(alpha=0.1)
    assert config.alpha == 0.9
    with pytest.raises(ValueError, match="alpha is 2"):
        config.replace(alpha=2)
    with pytest.raises(ValueError, match="unknown setting 'alpah'"):
        config.replace(alpah=0.1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "name", ["alpha", "beta", "self_affinity", "sharpness", "temperature", "tolerance"]
)
def test_config_refuses_numbers_that_are_not_finite(name, value):
    with pytest.raises(ValueError, match=f"{name} is .*; expected a finite number"):
        NerveConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha", -0.1),
        ("alpha", 1.1),
        ("beta", 1.5),
        ("self_affinity", -1),
        ("sharpness", -0.5),
        ("temperature", 0),
        ("temperature", 1e-40),
        ("self_affinity", 1e39),
        ("sharpness", 1e300),
        ("steps", -1),
        ("tolerance", 0),
        ("tolerance", -1e-4),
        ("radius", 0),
        ("global_keys", 0),
        ("normalization", "sofmax"),
    ],
)
def test_config_refuses_values_out_of_range(name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}; expected")):
        NerveConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("alpha", "0.5"), ("alpha", True), ("steps", 2.0), ("radius", None), ("steps", True)],
)
def test_config_refuses_wrong_types(name, value):
    with pytest.raises(TypeError, match=f"{name} is {value!r}; expected"):
        NerveConfig(**{name: value})


def test_the_limit_of_a_walk_needs_alpha_below_one():
    assert NerveConfig(steps=None).steps is None
    assert NerveConfig.from_dict(NerveConfig(steps=None).to_dict()) == NerveConfig(steps=None)
    with pytest.raises(ValueError, match="alpha is 1.0 and steps is None; expected alpha below 1"):
        NerveConfig(alpha=1, steps=None)


def test_the_rule_is_looked_up_when_it_is_asked_for(monkeypatch):
    config = NerveConfig(normalization="relu")
    assert config.rule is NORMALIZATIONS["relu"]
    with pytest.raises(ValueError, match="normalization is 'another'; expected one of softmax"):
        NerveConfig(normalization="another")
    monkeypatch.setitem(NORMALIZATIONS, "another", Normalization("another", offset=2.0))
    assert NerveConfig(normalization="another").rule.offset == 2


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_rule_keeps_the_order_of_affinities(scale):
    with pytest.raises(ValueError, match="scale of the normalization 'x' is .*; expected a number"):
        Normalization("x", scale=scale)


def test_numbers_of_other_libraries_are_numbers():
    for number in (np.float32(0.5), np.float64(0.5), Fraction(1, 2)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert NerveConfig(alpha=number, temperature=number).alpha == 0.5
