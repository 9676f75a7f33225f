import pytest
import torch

from nerve_fast import InputError
from nerve_fast.pipeline import stages
from nerve_fast.tiny.scenes import generate


def graph_of(pipe, image, seed=0):
    generators = [torch.Generator().manual_seed(seed)]
    view = stages.graph_view(pipe.graph, image.size)
    return stages.graph_of(pipe.graph, [image], view, generators)


def test_graph_is_that_of_the_networks_own_size(pipe):
    image = generate(960_000, (96, 144))[0]
    features = graph_of(pipe, image)
    seeded = [torch.Generator().manual_seed(0)]
    expected = pipe.graph.queries_and_keys([image], (192, 128), seeded)
    assert features.grid == expected.grid
    assert torch.equal(features.q, expected.q)
    assert torch.equal(features.k, expected.k)
    assert not torch.equal(graph_of(pipe, image, seed=1).q, expected.q)


def test_values_that_are_not_finite_are_refused(pipe, monkeypatch):
    queries_and_keys = pipe.graph.queries_and_keys

    def broken(*arguments, **options):
        features = queries_and_keys(*arguments, **options)
        features.k[0, 0, 0, 0] = torch.inf
        return features

    monkeypatch.setattr(pipe.graph, "queries_and_keys", broken)
    with pytest.raises(InputError, match="not finite in torch.float32: take another dtype"):
        graph_of(pipe, generate(960_000, (128, 128))[0])
