import pytest
import torch

from nerve_fast import InputError
from nerve_fast.priors import METHODS, PriorConfig, ProxyCLIP, patchwise, read_out_of


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "clipp"}, "prior is 'clipp'; expected one of clip, maskclip, sclip, naclip, cle"),
        ({"resolution": 0}, "prior resolution is 0; expected a number of pixels"),
        ({"resolution": True}, "prior resolution is True; expected a number of pixels"),
        ({"window": -8}, "prior window is -8"),
        ({"window": 64.0}, "prior window is 64.0"),
        ({"stride": 8}, "prior stride is 8 and window is None"),
        ({"window": 64, "stride": 65}, "prior stride is 65 and window is 64"),
        ({"logit_scale": 0}, "logit scale is 0"),
        ({"logit_scale": "40"}, "logit scale is '40'"),
        ({"logit_scale": float("nan")}, "logit scale is nan"),
        ({"protocol": "mmcv"}, "prior protocol is 'mmcv'; expected one of fit, mmseg, squash"),
        (
            {"networks": {"proxy": "owner/name"}},
            "prior network proxy is 'owner/name' and prior is naclip, whose further networks",
        ),
        ({"templates": "best"}, "prior templates is 'best'; expected one of imagenet, photo"),
        ({"background": "sky"}, "prior background is 'sky', which the prior naclip does not read"),
        ({"threshold": 0.5}, "prior threshold is 0.5, which the prior naclip does not read"),
        ({"threshold": 2}, "prior threshold is 2; expected a number from 0 to 1"),
        ({"protocol": "squash", "window": 64}, "prior window is 64 and the protocol is squash"),
        ({"name": "groupvit", "resolution": 448}, "resolution is 448, which the prior groupvit"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PriorConfig(**settings)


def test_read_outs_are_those_of_their_names(pipe):
    for name in METHODS:
        if name != "proxyclip":
            assert (
                read_out_of(METHODS[name], PriorConfig(name), pipe.prior.clip)
                is METHODS[name].read_out
            )


def test_the_proxy_is_loaded_once_as_the_clip_model_is(pipe, proxy):
    config = PriorConfig("proxyclip", networks={"proxy": str(proxy)})
    method = METHODS["proxyclip"]
    first, second = (read_out_of(method, config, pipe.prior.clip) for _ in range(2))
    assert isinstance(first, ProxyCLIP)
    assert first.proxy is second.proxy
    assert first.proxy.model.dtype == torch.float32


def test_without_a_name_the_proxy_is_that_of_the_paper(pipe, monkeypatch, proxy):
    asked = []
    load = patchwise._proxy
    monkeypatch.setattr(
        patchwise, "_proxy", lambda source, *rest: asked.append(source) or load(proxy, *rest)
    )
    read_out_of(METHODS["proxyclip"], PriorConfig("proxyclip"), pipe.prior.clip)
    assert asked == ["facebook/dino-vitb8"]


def test_a_proxy_that_is_not_there_is_named(pipe, tmp_path):
    config = PriorConfig("proxyclip", networks={"proxy": str(tmp_path / "none")})
    with pytest.raises(InputError, match="proxy is .*none.*: no such folder"):
        read_out_of(METHODS["proxyclip"], config, pipe.prior.clip)
