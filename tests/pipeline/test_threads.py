"""One pipeline called from several threads gives what single calls give, to the bit."""

import threading

import torch

import nerve_fast as nf
from nerve_fast.tiny.scenes import generate

LABELS = ["grass", "water", "ball"]


def in_threads(jobs):
    """Run all jobs at once, each in a thread; an error of one is raised."""
    barrier = threading.Barrier(len(jobs))
    results, errors = [None] * len(jobs), []

    def run(number, job):
        barrier.wait()
        try:
            results[number] = job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def test_calls_from_threads_equal_single_calls(single_threaded):
    pipe = nf.NervePipeline.from_pretrained("tiny", device="cpu")
    images = [generate(960_010 + number, (96, 96 + 8 * number))[0] for number in range(4)]
    words = [LABELS, LABELS[:2], ["snow", "tree"], LABELS[1:]]
    # The first calls of this pipeline, so that words and embeddings are made at the same time.
    jobs = [lambda i=i: pipe(images[i], words[i]) for i in range(4)]
    found = in_threads(jobs)
    for number, out in enumerate(found):
        expected = pipe(images[number], words[number])
        assert torch.equal(out.walked, expected.walked)
        assert torch.equal(out.prior, expected.prior)
        assert torch.equal(out.label_map, expected.label_map)


def test_threads_may_read_patches_otherwise(single_threaded, pipe):
    """Priors that share a network do not see one another's layers."""
    from nerve_fast.priors import METHODS, CLIPPrior, PriorConfig

    image = generate(960_020, (96, 96))[0]
    priors = [
        CLIPPrior(pipe.prior.clip, PriorConfig(name))
        for name, method in METHODS.items()
        if not method.networks
    ]
    found = in_threads([lambda p=p: p.similarities([image], LABELS) for p in priors])
    for prior, similarity in zip(priors, found, strict=True):
        assert torch.equal(similarity, prior.similarities([image], LABELS))


def test_a_chosen_backend_reaches_threads_started_inside():
    with nf.use_backend("reference"):
        (chosen,) = in_threads([nf_backend])
    assert chosen == "reference"
    assert in_threads([nf_backend]) == ["auto"]


def test_threads_that_choose_for_themselves_keep_their_choice():
    def choose(name):
        def job():
            with nf.use_backend(name):
                return nf_backend()

        return job

    with nf.use_backend("reference"):
        assert in_threads([choose("blocked"), choose("auto"), nf_backend]) == [
            "blocked",
            "auto",
            "reference",
        ]


def nf_backend():
    """The backend that a call without one would ask for."""
    from nerve_fast.dispatch import resolve

    return resolve("auto")
