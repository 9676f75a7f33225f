import os

import pytest
import torch


@pytest.fixture(scope="session")
def device():
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("TRITON_INTERPRET"):
        return torch.device("cpu")
    pytest.skip("there is no GPU; TRITON_INTERPRET=1 runs the kernels on the CPU")


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=str)
def dtype(request, device):
    if device.type == "cpu" and request.param == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16")
    return request.param
