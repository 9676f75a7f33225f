"""One walk shared by processes: what one process finds, and refusals that leave nobody waiting."""

import dataclasses
import os
import statistics
import sys

import pytest
import torch
import torch.distributed as dist

import nerve_fast as nf
from nerve_fast import clusters as rooms
from nerve_fast.bench.harness.together import together
from nerve_fast.blocked.cluster_error import cluster_error
from nerve_fast.clusters import cluster_keys
from nerve_fast.dispatch.costs import exchange
from nerve_fast.errors import InputError
from nerve_fast.numerics import ERROR_BOUNDS, relative_error
from nerve_fast.ops.walk import walked
from nerve_fast.shares import ExchangeError, Share, heights

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and finds by a file")

GRID, HEADS, DIM, LABELS = (7, 5), 3, 8, 4
TOKENS = GRID[0] * GRID[1]
MANY = 40
"""Channels of a head with which keys are compared by their principal components."""

PATCHED = ("all_reduce", "broadcast", "batch_isend_irecv")

CASES = {
    "softmax": {},
    "relu": {"normalization": "relu"},
    "l1": {"normalization": "l1"},
    "shift": {"normalization": "shift"},
    "streaming": {"route": "streaming"},
    "dense l1": {"normalization": "l1", "route": "dense"},
    "clusters": {"global_keys": 11},
    "clusters, shift": {"global_keys": 11, "normalization": "shift"},
    "clusters, l1": {"global_keys": 11, "normalization": "l1", "route": "streaming"},
    "limit": {"steps": None, "alpha": 0.7},
    "a wide window": {"radius": 4},
    "a window wider than the grid": {"radius": 40, "beta": 0.0},
    "global alone": {"beta": 1.0},
    "given weights": {"weights": [0.5, 0.25, 0.25]},
    "weights above 1": {"weights": [3.0, 2.0, 1.0], "temperature": 0.05},
    "the mean of heads": {"sharpness": 0.0},
    "steps": {"return_steps": (0, 2, 13)},
    "a batch": {"batch": (2,), "global_keys": 9},
    "seeds": {"seeds": True, "global_keys": 12},
    "seeds that share clusters": {"seeds": True, "global_keys": 6},
    "no step": {"steps": 0},
    "bfloat16": {"dtype": "bfloat16"},
    "float16 clusters": {"dtype": "float16", "global_keys": 11},
    "float64": {"dtype": "float64", "global_keys": 11},
    "clusters of many channels": {"head_dim": MANY, "global_keys": 11},
}


def inputs(seed, dtype="float32", batch=(), seeds=False, head_dim=DIM, rows=slice(None)):
    """The queries, keys and prior of some rows of the grid."""
    drawn = torch.Generator().manual_seed(seed)
    shape = (*batch, HEADS, TOKENS, head_dim)
    q, k = torch.randn(2, *shape, generator=drawn).to(getattr(torch, dtype))
    prior = torch.rand(*batch, TOKENS, LABELS, generator=drawn).softmax(-1)
    if seeds:
        prior = torch.zeros(*batch, TOKENS, LABELS)
        prior[..., [3, 9, 17, 30], [0, 1, 2, 3]] = 1
    own = slice(*(None if row is None else row * GRID[1] for row in (rows.start, rows.stop)))
    return q[..., own, :], k[..., own, :], prior[..., own, :]


def walk(seed, case, group=None, rows=slice(None)):
    """The walk of a case, and what else there is to compare."""
    case = dict(case)
    weights = case.pop("weights", None)
    kept = {name: case.pop(name) for name in ("route", "return_steps") if name in case}
    ours = ("dtype", "batch", "seeds", "head_dim")
    given = {name: case.pop(name) for name in ours if name in case}
    q, k, prior = inputs(seed, **given, rows=rows)
    if weights is not None:
        weights = torch.tensor(weights)
    config = nf.NerveConfig(**{"steps": 4, **case})
    out = walked(q, k, prior, GRID, config, head_weights=weights, group=group, **kept)
    return {"P": out.probabilities, "steps": out.steps_taken, "at": out.at_steps}


def rows_of(group):
    """The rows of the grid that this process holds: the first one more than the others."""
    rank, held = group.rank(), heights(GRID[0], group.size())
    return slice(sum(held[:rank]), sum(held[: rank + 1]))


def clustered(seed, head_dim, group=None, rows=slice(None), count=11):
    """How far clusters are off, and which these are."""
    q, k, prior = inputs(seed, head_dim=head_dim, rows=rows)
    share = Share(GRID) if group is None else Share(GRID, heights(GRID[0], group.size()), group)
    weights = torch.full((HEADS,), 1 / HEADS)
    clusters = cluster_keys(k, weights, count, prior, share)
    found = {"assignment": clusters.assignment, "sizes": clusters.sizes}
    for name in nf.normalization.NORMALIZATIONS:
        config = nf.NerveConfig(normalization=name, global_keys=count)
        found[name] = list(cluster_error(q, k, prior, weights, config, clusters))
    return found


def clustered_from_a_few(seed, group=None, rows=slice(None)):
    """Clusters found from four tokens, and their components from two."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rooms, "SAMPLE", 0)
        patched.setattr(rooms, "COMPONENT_TOKENS", 2)
        return clustered(seed, MANY, group, rows, count=2)


def refusals(group):
    """What wrong use says."""
    q, k, prior = inputs(0, rows=rows_of(group))
    first = group.rank() == 0
    wrong = {
        "rows": lambda: nf.random_walk(q, k, prior, (8, 5), group=group),
        "whole rows": lambda: nf.random_walk(q, k, prior, (5, 7), group=group),
        "config": lambda: nf.random_walk(
            q, k, prior, GRID, nf.NerveConfig(alpha=0.5 if first else 0.6), group=group
        ),
        "dtype": lambda: nf.random_walk(
            q.double() if first else q, k.double() if first else k, prior, GRID, group=group
        ),
        "device": lambda: nf.random_walk(
            *((x.to("meta") for x in (q, k, prior)) if first else (q, k, prior)), GRID, group=group
        ),
        "labels": lambda: nf.random_walk(q, k, prior[:, : 3 + first], GRID, group=group),
        "weights": lambda: nf.random_walk(
            q, k, prior, GRID, head_weights=torch.full((HEADS,), 0.1 + 0.1 * first), group=group
        ),
        "type": lambda: nf.random_walk(q, k, None if first else prior, GRID, group=group),
        "nan": lambda: nf.random_walk(q / 0 if first else q, k, prior, GRID, group=group),
        "memory": lambda: nf.random_walk(
            q, k, prior, GRID, max_memory=1 if first else None, group=group
        ),
        "backend": lambda: nf.random_walk(q, k, prior, GRID, backend="reference", group=group),
        "gradient": lambda: nf.random_walk(q.clone().requires_grad_(), k, prior, GRID, group=group),
    }
    said = {}
    for name, call in wrong.items():
        try:
            call()
        except (ValueError, TypeError) as error:
            said[name] = str(error)
    return said


COUNTED = {
    "clusters": {"global_keys": 11},
    "shift": {"normalization": "shift"},
    "all keys": {"beta": 1.0},
}


def received(group, config, head_dim=DIM):
    """Bytes that this process receives in a walk."""
    count, whole = [0], {name: getattr(dist, name) for name in PATCHED}
    others = (group.size() - 1) / group.size()

    def all_reduce(x, *given, **named):
        count[0] += 2 * others * x.nbytes
        return whole["all_reduce"](x, *given, **named)

    def broadcast(x, owner, **named):
        count[0] += x.nbytes * (owner != group.rank())
        return whole["broadcast"](x, owner, **named)

    def batch_isend_irecv(calls):
        count[0] += sum(call.tensor.nbytes for call in calls if call.op is dist.irecv)
        return whole["batch_isend_irecv"](calls)

    q, k, prior = inputs(0, head_dim=head_dim, rows=rows_of(group))
    weights = torch.full((HEADS,), 1 / HEADS)
    for counted in (all_reduce, broadcast, batch_isend_irecv):
        setattr(dist, counted.__name__, counted)
    try:
        nf.random_walk(q, k, prior, GRID, config, head_weights=weights, group=group)
    finally:
        for name, function in whole.items():
            setattr(dist, name, function)
    return count[0]


def everything(group, seed):
    """All cases, twice: the second time for its bits."""
    rows = rows_of(group)
    found = {"cases": {name: walk(seed, case, group, rows) for name, case in CASES.items()}}
    again = {name: walk(seed, case, group, rows) for name, case in CASES.items()}
    found["again"] = all(torch.equal(found["cases"][name]["P"], again[name]["P"]) for name in CASES)
    found["clusters of a few"] = clustered_from_a_few(seed, group, rows)
    found["clusters"] = {
        channels: clustered(seed, channels, group, rows) for channels in (DIM, MANY)
    }
    found["refusals"] = refusals(group)
    found["a step"] = {
        name: received(group, nf.NerveConfig(steps=5, **case))
        - received(group, nf.NerveConfig(steps=4, **case))
        for name, case in COUNTED.items()
    }
    found["clusters' bytes"] = {
        channels: received(group, nf.NerveConfig(steps=1, global_keys=11), channels)
        - received(group, nf.NerveConfig(steps=1, normalization="shift"), channels)
        for channels in (DIM, MANY)
    }
    q, k, prior = inputs(seed, rows=rows)
    config = nf.NerveConfig(normalization="shift", steps=4)
    shape, way = (HEADS, TOKENS, DIM), {"config": config, "grid": GRID}
    plan = nf.plan(shape, LABELS, processes=group.size(), **way)
    found["planned"] = nf.random_walk(q, k, prior, GRID, config, plan=plan, group=group)
    # One process plans another route than the others.
    route = "factorized" if group.rank() == 1 else "auto"
    found["routes"] = nf.random_walk(q, k, prior, GRID, config, route=route, group=group)
    return found


SEED = int(os.environ.get("NERVE_FAST_TEST_SEED") or torch.seed() % 2**31)


@pytest.fixture(scope="module", params=[2, 3])
def found(request):
    """What each process found, and the number of them."""
    print("seed", SEED)
    return together(request.param, everything, SEED)


@pytest.mark.parametrize("name", CASES)
def test_processes_find_what_one_finds(found, name):
    print("seed", SEED)
    case, ours = CASES[name], [one["cases"][name] for one in found]
    alone = walk(SEED, case)
    bound = ERROR_BOUNDS[getattr(torch, case.get("dtype", "float32"))]
    P = torch.cat([one["P"] for one in ours], dim=-2)
    assert P.dtype == alone["P"].dtype
    assert relative_error(P, alone["P"]) <= bound
    assert {one["steps"] for one in ours} == {alone["steps"]}
    for t, expected in alone["at"].items():
        at = torch.cat([one["at"][t] for one in ours], dim=-2)
        assert relative_error(at, expected) <= bound


def test_a_second_run_gives_the_same_bits(found):
    assert all(one["again"] for one in found)


@pytest.mark.parametrize("head_dim", [DIM, MANY])
def test_clusters_and_their_error_are_those_of_one_process(found, head_dim):
    alone = clustered(SEED, head_dim)
    ours = [one["clusters"][head_dim] for one in found]
    assert torch.equal(torch.cat([one["assignment"] for one in ours]), alone["assignment"])
    for one in ours:
        assert torch.equal(one["sizes"], alone["sizes"])
        for name in nf.normalization.NORMALIZATIONS:
            assert one[name] == ours[0][name]
            assert one[name] == pytest.approx(alone[name], rel=1e-4)


def test_a_plan_for_a_share_is_executed(found):
    expected = walk(SEED, {"normalization": "shift"})["P"]
    for way in ("planned", "routes"):
        P = torch.cat([one[way] for one in found])
        assert relative_error(P, expected) <= ERROR_BOUNDS[torch.float32]


@pytest.mark.parametrize("name", COUNTED)
def test_a_step_costs_the_bytes_that_plans_say(found, name):
    config, (_, middle, *_) = nf.NerveConfig(**COUNTED[name]), found
    plan = nf.plan(
        (HEADS, TOKENS, DIM),
        LABELS,
        config=config,
        weights_given=True,
        grid=GRID,
        processes=len(found),
        route="factorized" if name == "shift" else "streaming",
    )
    halo = 2 * GRID[1] * LABELS * 4 if config.beta < 1 else 0
    expected = exchange(plan.problem, plan.route).step
    # Of two processes each has one neighbour, and shares are not quite equal.
    if len(found) == 2:
        expected -= halo / 2
    tolerance = 0.15 if name == "all keys" else 1e-6
    assert middle["a step"][name] == pytest.approx(expected, rel=tolerance, abs=1)


def test_a_process_may_hold_nothing_that_clusters_are_found_from(found):
    alone = clustered_from_a_few(SEED)
    ours = [one["clusters of a few"]["assignment"] for one in found]
    assert torch.equal(torch.cat(ours), alone["assignment"])
    # Of three processes the second has none of the four tokens that the seed draws first.
    drawn = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(rooms.SEED))[:4]
    starts = torch.tensor(heights(GRID[0], 3)).cumsum(0) * GRID[1]
    assert 1 not in torch.bucketize(drawn, starts, right=True)


@pytest.mark.parametrize("head_dim", [DIM, MANY])
def test_clusters_cost_the_bytes_that_plans_say(found, head_dim):
    """Beyond those of a walk that needs neither clusters nor keys of others."""

    def bytes_of(**config):
        plan = nf.plan(
            (HEADS, TOKENS, head_dim),
            LABELS,
            config=nf.NerveConfig(steps=1, **config),
            weights_given=True,
            grid=GRID,
            processes=len(found),
            route="factorized" if "normalization" in config else "streaming",
        )
        return sum(dataclasses.astuple(exchange(plan.problem, plan.route)))

    expected = bytes_of(global_keys=11) - bytes_of(normalization="shift")
    # What the first one broadcasts it does not receive.
    mean = statistics.mean(one["clusters' bytes"][head_dim] for one in found)
    assert mean == pytest.approx(expected, rel=0.03)


REFUSED = {
    "rows": "expected those of the grid, 8 × 5 = 40",
    "whole rows": "expected whole rows of the grid, 7 tokens each",
    "config": "config is NerveConfig(alpha=0.5",
    "dtype": "the dtype of q is torch.float64 on process 0 of the group and torch.float32",
    "device": "meta",
    "labels": "the number of labels is 4 on process 0 of the group and 3 on process 1",
    "weights": "head_weights is [0.2",
    "type": "prior is a NoneType",
    "nan": "q holds NaN or infinity",
    "memory": "max_memory is 1 B",
    "backend": "'blocked' alone",
    "gradient": "requires a gradient",
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_use_is_refused_by_every_process(found, name):
    for one in found:
        assert REFUSED[name] in one["refusals"][name]
        assert "\n" not in one["refusals"][name]


def dies(group):
    """One process ends in the middle of the walk."""
    q, k, prior = inputs(0, rows=rows_of(group))
    steps = []

    def on_step():
        steps.append(1)
        if group.rank() == 1 and len(steps) == 2:
            raise KeyError("died")

    try:
        nf.random_walk(q, k, prior, GRID, group=group, on_step=on_step)
    except ExchangeError as error:
        return str(error)
    except KeyError:
        # As a process that is killed: nothing is said to the others.
        dist.destroy_process_group()
        return ""


def test_a_process_that_ends_takes_the_others_along():
    said = together(2, dies)[0]
    assert said.startswith("the processes of the group lost one another, as one has ended")
    assert "\n" not in said


def test_what_is_no_group_is_refused(make_qk, make_prior):
    q, k = make_qk(HEADS, TOKENS, DIM)
    with pytest.raises(TypeError, match="group is 'all'; expected a torch.distributed process"):
        nf.random_walk(q, k, make_prior(TOKENS, LABELS), GRID, group="all")


def test_rows_are_shared_alike():
    assert heights(7, 3) == [3, 2, 2]
    assert heights(4, 4) == [1, 1, 1, 1]


def test_plans_know_a_share(make_qk):
    shape, config = (HEADS, 64 * 64, DIM), nf.NerveConfig(global_keys=64)
    whole = nf.plan(shape, LABELS, config=config, grid=(64, 64), route="streaming")
    shares = [
        nf.plan(shape, LABELS, config=config, grid=(64, 64), route="streaming", processes=count)
        for count in (1, 2, 4)
    ]
    assert shares[0].peak_memory == whole.peak_memory
    assert whole.peak_memory > shares[1].peak_memory > shares[2].peak_memory
    assert shares[2].flops < whole.flops / 2
    for processes in (0, 65):
        with pytest.raises(InputError, match="expected from 1 to 64"):
            nf.plan(shape, LABELS, grid=(64, 64), processes=processes)
    with pytest.raises(TypeError, match="processes is 2.0"):
        nf.plan(shape, LABELS, grid=(64, 64), processes=2.0)
    with pytest.raises(InputError, match="backend is 'reference', and 2 processes share"):
        nf.plan(shape, LABELS, grid=(64, 64), processes=2, backend="reference")
