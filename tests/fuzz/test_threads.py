"""Calls of all kinds, made at random from threads, equal single calls to the bit."""

import queue
import random
import threading

import pytest
import torch

import nerve_fast as nf
from nerve_fast.dispatch import resolve
from nerve_fast.tiny.scenes import NAMES, generate

THREADS = 4

SIZES = [(64, 64), (64, 80), (96, 64)]


def random_config(chance: random.Random) -> nf.NerveConfig:
    return nf.NerveConfig(
        steps=chance.choice([0, 1, 3, None]),
        radius=chance.choice([1, 2]),
        alpha=chance.choice([0.0, 0.5, 0.9]),
        beta=chance.choice([0.0, 0.5, 1.0]),
        sharpness=chance.choice([0.0, 1.0]),
        normalization=chance.choice(["softmax", "relu", "l1", "shift"]),
        tolerance=1e-2,
    )


def flat(result) -> list:
    """Tensors and plain values of a result, in one order."""
    if isinstance(result, nf.SegmentationOutput):
        return [result.label_map, result.prior, result.walked, result.labels, result.steps_taken]
    if isinstance(result, nf.LocalAffinity):
        return [result.values]
    if isinstance(result, nf.Plan):
        return [result.backend, result.route, result.flops, result.bytes]
    if isinstance(result, (tuple, list)):
        return [one for part in result for one in flat(part)]
    if isinstance(result, dict):
        return [one for key in result for one in (key, *flat(result[key]))]
    return [result]


def random_job(pipe, chance: random.Random):
    """Something to do with a pipeline or the operations, and its name."""
    config, seed = random_config(chance), chance.randrange(2**31)
    backend = chance.choice(["auto", "reference", "blocked"])
    words = chance.sample(NAMES, chance.choice([1, 2, 5]))
    size, scene = chance.choice(SIZES), 960_100 + chance.randrange(20)

    def image():
        return generate(scene, size)[0]

    def tensors():
        generator = torch.Generator().manual_seed(seed)
        q, k = torch.randn(2, 2, 30, 8, generator=generator)
        return q, k, torch.rand(30, 3, generator=generator)

    def operations():
        q, k, _ = tensors()
        return [
            nf.head_entropy(q, k, backend=backend),
            nf.cosine_affinity(q, k, backend=backend),
            nf.local_affinity(q, k, (5, 6), radius=config.radius, backend=backend),
            nf.plan(q.shape, 3, config=config, backend=backend, max_memory="1GB"),
        ]

    def walk():
        q, k, prior = tensors()
        return nf.random_walk(q, k, prior, (5, 6), config, backend=backend, return_steps=(1, 2))

    def chosen():
        with nf.use_backend(backend):
            return [resolve("auto"), walk(), pipe(image(), words, config=config)]

    jobs = {
        "words": lambda: pipe(image(), words, config=config),
        "seeds": lambda: pipe(image(), points={"a": [(5, 5)], "b": [(40, 40)]}, config=config),
        "features": lambda: pipe(pipe.encode(image()), words, config=config),
        "images": lambda: pipe([image(), image()], words, config=config, batch_size=2),
        "noise": lambda: pipe(
            image(), words, generator=torch.Generator().manual_seed(seed), config=config
        ),
        "operations": operations,
        "walk": walk,
        "chosen": chosen,
        "unchosen": lambda: resolve("auto"),
    }
    name = chance.choice(sorted(jobs))
    return jobs[name], f"{name}, {backend}, {config}, {words}, scene {scene} of {size}"


def equal(found, expected) -> bool:
    return len(found) == len(expected) and all(
        torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        for one, other in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("count", [8, pytest.param(600, marks=pytest.mark.slow)])
def test_random_calls_from_threads_equal_single_calls(single_threaded, chance, count):
    # Its own: what it has seen, such as words and embeddings, is made by several threads at once.
    pipe = nf.NervePipeline.from_pretrained("tiny", device="cpu")
    jobs = [random_job(pipe, chance) for _ in range(count)]
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    for number in range(count):
        waiting.put(number)
    found: list = [None] * count
    errors: list[BaseException] = []
    barrier = threading.Barrier(THREADS)

    def work():
        barrier.wait()
        while not errors:
            try:
                number = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                found[number] = flat(jobs[number][0]())
            except BaseException as error:
                errors.append(error)
                print(f"{number}: {jobs[number][1]}")

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    for number, (job, name) in enumerate(jobs):
        assert equal(found[number], flat(job())), f"{number}: {name}"
