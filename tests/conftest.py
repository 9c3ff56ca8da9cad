"""Tests run on one thread each: several run side by side, and tiny tensors gain nothing from more.

Without a GPU, Triton kernels run in its interpreter, which has to be asked for before Triton is imported.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
torch.set_num_threads(1)
