import copy
import threading

import torch
from torch import nn

from nerve_fast.backbones.capture import captured, watch


def network():
    layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 6))
    watch([layers[0], layers[1]])
    return layers


def test_outputs_are_those_of_the_modules_in_their_order():
    layers = network()
    x = torch.randn(2, 3)
    first = layers[0](x)
    out = captured([layers[1], layers[0]], lambda: layers(x))
    assert torch.equal(out[0], layers[1](first))
    assert torch.equal(out[1], first)


def test_the_pass_ends_with_the_last_of_them():
    layers = network()
    ran = []
    layers[2].register_forward_hook(lambda *given: ran.append(given))
    captured([layers[0], layers[1]], lambda: layers(torch.randn(2, 3)))
    assert not ran
    layers(torch.randn(2, 3))
    assert len(ran) == 1


def test_a_module_is_watched_once_and_copies_are_their_own():
    layers = network()
    watch([layers[0]])
    assert len(layers[0]._forward_hooks) == 1
    copied = copy.deepcopy(layers)
    with torch.no_grad():
        copied[0].weight.zero_()
    x = torch.randn(2, 3)
    mine, theirs = (captured([one[0]], lambda one=one: one(x))[0] for one in (layers, copied))
    assert not torch.equal(mine, theirs)


def test_threads_do_not_see_one_another():
    layers = network()
    inputs = [torch.full((1, 3), float(number)) for number in range(8)]
    barrier = threading.Barrier(len(inputs))
    found = [None] * len(inputs)

    def run(number):
        barrier.wait()
        for _ in range(50):
            (found[number],) = captured([layers[1]], lambda: layers(inputs[number]))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for x, out in zip(inputs, found, strict=True):
        torch.testing.assert_close(out, layers[1](layers[0](x)))
