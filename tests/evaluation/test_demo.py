import torch

from nerve_fast.evaluation import demo
from nerve_fast.tiny.scenes import generate


def test_the_untrained_unet_is_another_of_the_same_shape(pipe):
    untrained = pipe.graph.untrained()
    trained, fresh = (x.unet.state_dict() for x in (pipe.graph, untrained))
    assert trained.keys() == fresh.keys()
    name = f"{pipe.graph.layers[0]}.to_q.weight"
    assert trained[name].shape == fresh[name].shape
    assert not torch.allclose(trained[name], fresh[name])
    again = pipe.graph.untrained().unet.state_dict()
    assert torch.equal(again[name], fresh[name])
    assert untrained.vae is pipe.graph.vae


def test_colours_are_the_mean_of_each_tokens_pixels():
    image = generate(980_000)[0]
    graph = demo._colours(image, (32, 32))
    q, k = graph.q[0], graph.k[0]
    assert torch.equal(q, k)
    assert q.shape == (1, 1024, 3)
    pixels = torch.tensor([image.getpixel((4 + x, 8 + y)) for y in range(4) for x in range(4)])
    expected = pixels.float().mean(0) / 127.5 - 1
    torch.testing.assert_close(q[0, 2 * 32 + 1], expected)
