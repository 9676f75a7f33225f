import pytest
import torch

from nerve_fast.blocked import precision


@pytest.fixture
def pays(monkeypatch):
    """``pays(vendor, amx=…, avx=…)``: what is found of a CPU with these instructions."""

    def found(vendor, amx=False, avx=False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
        monkeypatch.setattr(precision, "_vendor", lambda: f"vendor_id : {vendor}")
        return precision.bfloat16_pays.__wrapped__()

    return found


@pytest.mark.parametrize(
    ("vendor", "amx", "avx", "expected"),
    [
        ("GenuineIntel", True, True, True),
        ("GenuineIntel", False, True, False),
        ("AuthenticAMD", False, True, True),
        ("AuthenticAMD", False, False, False),
    ],
)
def test_16_bits_are_taken_where_the_hardware_gains_by_them(pays, vendor, amx, avx, expected):
    assert pays(vendor, amx, avx) is expected


def test_a_cpu_is_known_where_linux_does_not_say(monkeypatch):
    def missing(path, **options):
        raise FileNotFoundError(path)

    monkeypatch.setattr(precision.Path, "read_text", missing)
    monkeypatch.setattr(precision.platform, "processor", lambda: "AMD64 Family 25, AuthenticAMD")
    assert "AuthenticAMD" in precision._vendor()
