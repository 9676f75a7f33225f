import torch

from nerve_fast.bench.harness.poison import poisoned


def test_what_nobody_wrote_is_nan():
    x = torch.zeros(3)
    with poisoned():
        for out in (x.new_empty(2, 2), torch.empty_like(x), x.new_empty(2, dtype=torch.bfloat16)):
            assert out.isnan().all()
        assert x.new_empty(1, dtype=torch.float8_e4m3fn).float().isnan().all()
        assert (x.new_empty(2, dtype=torch.int32) == 77).all()
    assert torch.empty_like(x, dtype=torch.int32).dtype == torch.int32
    torch.manual_seed(0)
    assert not torch.zeros_like(x).isnan().any()
