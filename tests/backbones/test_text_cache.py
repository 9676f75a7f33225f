import logging

import pytest
import torch

from nerve_fast.backbones.text_cache import TextCache, fingerprint


@pytest.fixture
def embedding(generator):
    return torch.randn(8, generator=generator)


def test_an_embedding_comes_back_to_the_bit(tmp_path, embedding):
    TextCache(tmp_path, {"model": "a"}).write("cat", embedding)
    assert torch.equal(TextCache(tmp_path, {"model": "a"}).read("cat"), embedding)


def test_another_word_or_model_does_not_find_it(tmp_path, embedding):
    TextCache(tmp_path, {"model": "a"}).write("cat", embedding)
    assert TextCache(tmp_path, {"model": "a"}).read("dog") is None
    assert TextCache(tmp_path, {"model": "b"}).read("cat") is None


@pytest.mark.parametrize("damage", ["cut", "flipped bit", "empty", "another's", "text"])
def test_a_damaged_file_counts_as_absent_and_is_rebuilt(tmp_path, embedding, damage):
    cache = TextCache(tmp_path, {"model": "a"})
    cache.write("cat", embedding)
    (path,) = cache.folder.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:-3]
    elif damage == "flipped bit":
        content[-1] ^= 1
    elif damage == "empty":
        content = b""
    elif damage == "text":
        content = b"not safetensors at all"
    else:
        other = TextCache(tmp_path / "other", {"model": "b"})
        other.write("cat", -embedding)
        content = next(other.folder.iterdir()).read_bytes()
    path.write_bytes(content)
    assert cache.read("cat") is None
    cache.write("cat", embedding)
    assert torch.equal(cache.read("cat"), embedding)


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path, embedding, caplog):
    (tmp_path / "file").touch()
    cache = TextCache(tmp_path / "file", {"model": "a"})
    with caplog.at_level(logging.WARNING):
        cache.write("cat", embedding)
        cache.write("dog", embedding)
    assert len(caplog.records) == 1
    assert "text embeddings are not kept" in caplog.text
    assert cache.read("cat") is None


def test_fingerprint_changes_with_any_weight():
    layer = torch.nn.Linear(3, 3).half()
    before = fingerprint(layer)
    assert before == fingerprint(layer)
    layer.weight.data[2, 1] += 1
    assert fingerprint(layer) != before


def test_fingerprint_changes_with_dtype_shape_and_name():
    layer = torch.nn.Linear(2, 2, bias=False)
    layer.weight.data.zero_()
    prints = {fingerprint(layer), fingerprint(torch.nn.ModuleDict({"a": layer}))}
    for other in (torch.nn.Linear(4, 1, bias=False), torch.nn.Linear(4, 2, bias=False).half()):
        other.weight.data.zero_()
        prints.add(fingerprint(other))
    assert len(prints) == 4
