import builtins

import pytest
import torch
from torch.nn.functional import cosine_similarity

from nerve_fast import InputError
from nerve_fast.priors.ovdiff import prototypes
from nerve_fast.priors.ovdiff.prototypes import Gathered, clustered, compared


def half(top):
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4] = True
    return mask if top else ~mask


NONE = torch.zeros(8, 8, dtype=torch.bool)


def test_prototypes_are_means_of_all_of_each_image_and_of_clusters(generator, monkeypatch):
    monkeypatch.setattr(prototypes, "CLUSTERS", 3)
    images = [torch.randn(4, 4, 5, generator=generator) for _ in range(3)]
    gathered = Gathered()
    gathered.add(images[0], half(True), half(False))
    gathered.add(images[1], half(False), NONE)
    # Shows the word nowhere, and does not count at all.
    gathered.add(images[2], NONE, half(True))
    foreground, background = gathered.prototypes("cat")
    parts = [images[0][:2].reshape(-1, 5), images[1][2:].reshape(-1, 5)]
    assert foreground.shape == (1 + 2 + 3, 5)
    torch.testing.assert_close(foreground[0], torch.cat(parts).mean(0))
    torch.testing.assert_close(foreground[1:3], torch.stack([part.mean(0) for part in parts]))
    assert background.shape == (1 + 1 + 3, 5)
    torch.testing.assert_close(background[0], images[0][2:].reshape(-1, 5).mean(0))
    torch.testing.assert_close(background[0], background[1])
    # Each mean of a cluster is the mean of the places nearest to it.
    places = torch.cat(parts)
    nearest = torch.cdist(places, foreground[3:]).argmin(1)
    for number in range(3):
        own = places[nearest == number].mean(0)
        torch.testing.assert_close(foreground[3 + number], own, rtol=1e-4, atol=1e-5)


def test_few_places_are_few_clusters(generator):
    places = torch.randn(5, 3, generator=generator)
    found = clustered(places)
    assert found.shape == (5, 3)
    torch.testing.assert_close(
        torch.cdist(places, found).amin(1), torch.zeros(5), atol=1e-5, rtol=0
    )


def test_a_word_that_no_image_shows_is_named(generator):
    gathered = Gathered()
    gathered.add(torch.randn(4, 4, 5, generator=generator), NONE, half(True))
    with pytest.raises(InputError, match="none of the images made of 'cat' shows it"):
        gathered.prototypes("cat")


def test_a_word_without_a_background_has_none_of_it(generator):
    gathered = Gathered()
    gathered.add(torch.randn(4, 4, 5, generator=generator), half(True), NONE)
    assert gathered.prototypes("cat")[1].shape == (0, 5)


def test_without_scikit_learn_the_message_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r'pip install "nerve-fast\[ovdiff\]"'):
        clustered(torch.zeros(3, 2))


def test_stuff_has_no_background_and_is_none(generator):
    fore = [torch.randn(4, 6, generator=generator) for _ in range(3)]
    back = [torch.randn(7, 6, generator=generator) for _ in range(3)]
    back[1][2] = 3 * fore[0][1]
    back[2] = fore[0][:1]
    found, around = compared(fore, back, [True, False, False])
    for one, other in zip(found, fore, strict=True):
        torch.testing.assert_close(one, other / other.norm(dim=1, keepdim=True))
    kept = [
        row
        for row in back[1]
        if max(cosine_similarity(row, other, dim=0) for other in fore[0]) <= 0.85
    ]
    assert len(around[0]) == 0
    assert 1 <= len(kept) < 7
    torch.testing.assert_close(around[1], torch.stack([row / row.norm() for row in kept]))
    # A single one stays, as in the public code.
    assert len(around[2]) == 1
    assert [len(one) for one in compared(fore, back, [False] * 3)[1]] == [7, 7, 1]
