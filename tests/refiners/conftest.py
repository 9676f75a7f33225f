import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Recorder(TorchDispatchMode):
    """Keeps what is made within it, so that no place in memory is given twice."""

    def __init__(self):
        super().__init__()
        self.storages = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.storages[result.untyped_storage().data_ptr()] = (
                result.untyped_storage(),
                result.element_size(),
            )
        return result

    def sizes(self) -> list[int]:
        """In elements, of each piece of memory; views take none of their own."""
        return [len(storage) // size for storage, size in self.storages.values()]


@pytest.fixture
def recorder():
    return Recorder()
