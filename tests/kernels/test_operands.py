import pytest
import torch

from nerve_fast.kernels import configs, launch, launches, operands


@pytest.mark.parametrize("target", launch.SHARED_MEMORY)
def test_columns_are_split_but_not_on_amd(monkeypatch, target):
    """There only a program's first wave waits for its stores before it counts itself done."""
    monkeypatch.setattr(configs, "_forced", {})
    monkeypatch.setattr(operands, "multiprocessors", lambda device: 132)
    heads, head_dim, labels = launches.SHAPES[0]
    with launch.recorded(target) as started:
        launches._operations(heads, head_dim, labels, torch.bfloat16, ["softmax", "shift"])
    split = {one.arguments["SPLIT"] for one in started if "SPLIT" in one.arguments}
    assert split == ({False} if target == "gfx942" else {True})
