"""Where a kernel's tests run: on a CPU in the interpreter, fp32 and fp16; on a card, marked gpu, in bf16 and fp32."""

import pytest
import torch

HERE = "cuda" if torch.cuda.is_available() else "cpu"


def place(device: str, dtype: torch.dtype):
    marks = [pytest.mark.skipif(HERE != device, reason=f"runs on {device}, this machine has {HERE}")]
    if device == "cuda":
        marks.append(pytest.mark.gpu)
    return pytest.param({"device": device, "dtype": dtype}, id=f"{device}-{dtype}".replace("torch.", ""), marks=marks)


@pytest.fixture(params=[place("cpu", torch.float16), place("cuda", torch.bfloat16)])
def half(request) -> dict:
    """As `where`, for what is done to two bytes an element alone."""
    return request.param


@pytest.fixture(
    params=[
        place("cpu", torch.float32),
        place("cpu", torch.float16),
        place("cuda", torch.float32),
        place("cuda", torch.bfloat16),
    ]
)
def where(request) -> dict:
    """Keyword arguments `device` and `dtype` of kernels.testing.verify."""
    return request.param
