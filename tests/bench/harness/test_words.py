import dataclasses

from nerve_fast.bench.harness.case import Setting
from nerve_fast.bench.harness.words import bytes_in_words, in_words, seconds_in_words


def test_words():
    assert seconds_in_words(0.0012345) == "1.23 ms"
    assert seconds_in_words(123.4) == "123 s"
    assert seconds_in_words(5e-8) == "0.0500 µs"
    assert bytes_in_words(1_234_567) == "1.23 MB"
    assert bytes_in_words(0) == "0 kB"
    setting = dataclasses.asdict(Setting(16_384, labels=171, normalization="l1"))
    assert in_words(setting) == "N = 16,384, l1, float32, K = 171"
