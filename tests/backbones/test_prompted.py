import threading

import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from nerve_fast import InputError
from nerve_fast.backbones.prompt_encoder import PromptEncoder
from nerve_fast.backbones.prompted import PromptedDiffusion
from nerve_fast.priors.crossattention import CROSS, SELF
from nerve_fast.tiny import MODELS


@pytest.fixture(scope="module")
def prompted(systems):
    return PromptedDiffusion.from_pretrained(
        str(systems["diffusion"]),
        device=torch.device("cpu"),
        dtype=torch.float32,
        layers=SELF,
        cross=CROSS,
    )


def test_prompts_are_encoded_as_their_text_is(prompted, systems):
    folder = systems["diffusion"]
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    for text in ("", "red ball and grass", "grass " * 90):
        ids = tokenizer(
            text, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            expected = text_encoder(ids).last_hidden_state
        tokens = tokenizer(text, add_special_tokens=False).input_ids
        torch.testing.assert_close(prompted.prompts.states(tokens), expected)


def test_a_tokenizer_of_another_model_is_refused(systems):
    text_encoder = CLIPTextModel.from_pretrained(systems["diffusion"], subfolder="text_encoder")
    with pytest.raises(ValueError, match="gives token 765, and the text encoder knows 765"):
        PromptEncoder(text_encoder, None, first=763, last=765, padding=0)


def seen(prompted, seed):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(1, 3, 64, 96, generator=generator) * 2 - 1
    noise = torch.randn(1, 4, 8, 12, generator=generator)
    return prompted.attention(pixels, noise, prompted.prompts.states([5 + seed, 6]))


def test_maps_are_on_their_grids_and_tokens_share_a_place(prompted):
    found = seen(prompted, 0)
    assert [tuple(maps.shape) for maps in found.cross] == [(100, 77, 2, 3), (30, 77, 4, 6)]
    for maps, heads in zip(found.cross, prompted.heads, strict=True):
        assert len(maps) == heads
        torch.testing.assert_close(maps.sum(1), torch.ones(maps[:, 0].shape))
    assert found.q.shape == found.k.shape == (5, 96, 4)
    assert prompted.self_heads == 5


def test_threads_do_not_see_one_anothers_attention(prompted):
    alone = [seen(prompted, seed) for seed in range(3)]
    together = {}
    threads = [
        threading.Thread(target=lambda seed=seed: together.update({seed: seen(prompted, seed)}))
        for seed in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, expected in enumerate(alone):
        torch.testing.assert_close(together[seed].cross, expected.cross)
        torch.testing.assert_close(together[seed].q, expected.q)


def test_a_unet_without_the_layers_is_refused(cpu):
    with pytest.raises(InputError, match=r"no layer down_blocks\.2.*has four levels|layer is"):
        PromptedDiffusion.from_pretrained(
            str(MODELS / "diffusion"), **cpu, layers=SELF, cross=CROSS
        )
