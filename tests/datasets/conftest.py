import pytest
from small_data_sets import build, image_path, mask_path


@pytest.fixture
def make():
    """``make(name, root)``: a data set on disk; the masks as they stand in the files, by name."""
    return build


@pytest.fixture
def mask_of():
    """``mask_of(name, root, number)``: the path of a sample's mask."""
    return mask_path


@pytest.fixture
def image_of():
    """``image_of(name, root, number)``: the path of a sample's image."""
    return image_path
