from nerve_fast.bench.harness import suite


def test_a_gpu_has_cases_of_every_operation_and_its_kernels():
    found = suite.select("cuda")
    assert {case.operation.name for case in found} == set(suite.operation_names())
    walks = {case.contender.name for case in found if case.operation.name == "walk"}
    assert {"triton factorized", "triton dense", "triton streaming", "SDPA"} <= walks
    assert len(suite.select("cuda", "quick")) < len(found) < len(suite.select("cuda", "full"))
