import pytest
from transformers import CLIPTokenizer

from nerve_fast.priors.wording import parts_of, worded
from nerve_fast.tiny import MODELS

PROMPT = "a photograph of {} and other object and background"


@pytest.fixture(scope="module")
def tokenizer():
    return CLIPTokenizer.from_pretrained(MODELS / "clip")


def read(tokenizer, tokens):
    return tokenizer.decode(tokens).replace(" ", "")


def test_a_prompt_is_tokenised_as_its_text_is(tokenizer):
    found = worded(tokenizer, PROMPT, ["grass", "potted [plant]", "red ball"])
    text = "a photograph of grass and potted plant and red ball and other object and background"
    assert found.tokens == tokenizer(text).input_ids[1:-1]


def test_places_are_those_of_the_names_or_of_what_stands_in_brackets(tokenizer):
    names = ["grass", "traffic [light]", "[tv] monitor", "red ball"]
    found = worded(tokenizer, PROMPT, names)
    whole = [tokenizer.bos_token_id, *found.tokens]
    said = [read(tokenizer, [whole[place] for place in places]) for places in found.places]
    assert said == ["grass", "light", "tv", "redball"]
    assert found.places[0][0] == 1 + len(tokenizer("a photograph of").input_ids[1:-1])


def test_brackets_hold_what_counts():
    assert parts_of("potted [plant]") == ("potted ", "plant", "")
    assert parts_of("[tv] monitor") == ("", "tv", " monitor")
    assert parts_of("red ball") == ("", "red ball", "")
    assert parts_of("[]") == ("", "", "")
