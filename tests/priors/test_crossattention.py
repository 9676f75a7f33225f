import math

import torch
from torch.nn.functional import interpolate

from nerve_fast.priors.crossattention import HEADS, averaged_in_clusters, token_maps


def attention(generator, heads, tokens, side):
    scores = 3 * torch.randn(heads, tokens, side, side, generator=generator)
    return scores.softmax(1)


def test_maps_are_shares_of_their_places_weighted_by_grid(generator):
    coarse, fine = (attention(generator, *sizes) for sizes in ((6, 5, 4), (3, 5, 8)))
    for heads in (None, ((1, 4), (2,))):
        expected = torch.zeros(5, 16, 16)
        chosen = heads or (range(6), range(3))
        for maps, weight, own in zip((coarse, fine), (0.7, 0.3), chosen, strict=True):
            for token in range(5):
                mean = sum(maps[head, token] for head in own) / len(own)
                mean = interpolate((mean / mean.sum())[None, None], (16, 16), mode="bilinear")
                expected[token] += weight * mean[0, 0]
        found = token_maps([coarse, fine], (0.7, 0.3), 16, heads)
        torch.testing.assert_close(found, expected)


def clusters_by_loops(maps, side):
    """Each place's cluster after twenty rounds, a place at a time, in Python's numbers."""
    x = [[value or 1e-6 for value in place] for place in maps.flatten(1).T.tolist()]
    step = int(side // math.sqrt(32)) or 1
    starts = [y * side + z for y in range(0, side, step) for z in range(0, side, step)]
    means = [x[start] for start in starts]

    def distance(a, b):
        pairs = [(u + 1e-5, v + 1e-5) for u, v in zip(a, b, strict=True)]
        there = sum(u * math.log(u / v) for u, v in pairs)
        back = sum(v * math.log(v / u) for u, v in pairs)
        return (there + back) / 2

    for _ in range(20):
        own = [min(range(len(means)), key=lambda c: distance(means[c], place)) for place in x]
        members = [[x[i] for i in range(len(x)) if own[i] == c] for c in sorted(set(own))]
        means = [[sum(t) / len(places) for t in zip(*places, strict=True)] for places in members]
    return own


def test_places_have_the_mean_of_their_cluster(generator):
    side = 12
    kinds = torch.randint(0, 3, (side, side), generator=generator)
    maps = torch.tensor([[8.0, 1, 1], [1, 6, 0], [0, 2, 9]])[:, kinds]
    maps = maps * (1 + 0.2 * torch.rand(maps.shape, generator=generator))
    maps = maps / maps.sum((1, 2), keepdim=True)
    own = clusters_by_loops(maps.double(), side)
    assert 1 < len(set(own)) < side**2
    expected = torch.empty(3, side**2)
    for number in set(own):
        inside = torch.tensor([cluster == number for cluster in own])
        expected[:, inside] = maps.flatten(1)[:, inside].mean(1, keepdim=True)
    torch.testing.assert_close(averaged_in_clusters(maps).flatten(1), expected)


def test_the_authors_take_41_heads_of_a_hundred_and_nine_of_thirty():
    coarse, fine = HEADS["voc"]
    assert (len(set(coarse)), len(set(fine))) == (len(coarse), len(fine)) == (41, 9)
    assert (min(coarse), max(coarse)) == (0, 96)
    assert (min(fine), max(fine)) == (5, 28)
