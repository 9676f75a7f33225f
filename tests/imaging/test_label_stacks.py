import numpy as np
import pytest

from nerve_fast.imaging.label_stacks import LabelStack


@pytest.mark.parametrize(("count", "dtype", "none"), [(3, np.uint8, 255), (300, np.uint16, 65535)])
def test_label_maps_come_back_one_at_a_time(count, dtype, none, tmp_path):
    chance = np.random.default_rng(0)
    maps = chance.integers(-1, count, (4, 5, 7))
    names = [f"label {number}" for number in range(count)]
    with LabelStack(tmp_path / "a.npz", names, b"") as stack:
        for number, label_map in enumerate(maps):
            stack.write(label_map, 0.04 * number)
    with np.load(tmp_path / "a.npz") as found:
        assert found["labels"].tolist() == names
        assert np.allclose(found["times"], [0, 0.04, 0.08, 0.12])
        for number, label_map in enumerate(maps):
            one = found[f"{number:06}"]
            assert one.dtype == dtype
            assert np.array_equal(one, np.where(label_map < 0, none, label_map))
