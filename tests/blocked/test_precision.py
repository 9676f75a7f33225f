import pytest
import torch

from nerve_fast.blocked import precision


@pytest.fixture
def cpu(monkeypatch):
    """``cpu(float32, bfloat16)``: one with instructions, and what a product takes on it."""

    def made(float32, bfloat16, instructions=True):
        seconds = {torch.float32: float32, torch.bfloat16: bfloat16}
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
        monkeypatch.setattr(precision, "_seconds", lambda matrix: seconds[matrix.dtype])
        return precision.bfloat16_pays.__wrapped__()

    return made


@pytest.mark.parametrize(
    ("float32", "bfloat16", "pays"), [(1.0, 0.46, True), (1.0, 0.95, False), (1.0, 2.0, False)]
)
def test_16_bits_are_taken_where_they_are_faster(cpu, float32, bfloat16, pays):
    assert cpu(float32, bfloat16) is pays


def test_a_cpu_without_instructions_is_not_timed(cpu):
    assert cpu(None, None, instructions=False) is False


@pytest.mark.parametrize("asked", ["highest", "medium"])
def test_the_users_precision_is_left_as_it_was(cpu, monkeypatch, asked):
    seen = []
    monkeypatch.setattr(precision, "TRIALS", 1)
    torch.set_float32_matmul_precision(asked)
    try:
        cpu(1.0, 0.5)
        monkeypatch.setattr(
            precision, "_seconds", lambda x: seen.append(torch.get_float32_matmul_precision()) or 1
        )
        precision.bfloat16_pays.__wrapped__()
        assert torch.get_float32_matmul_precision() == asked
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == ["highest", "highest"]
