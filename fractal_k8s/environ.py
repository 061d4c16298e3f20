"""Environment variables that decide bits, set or removed before the libraries load.

Imports nothing, so that a worker can call it first of all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

# One thread: the way a sum is split over threads decides its last bits.
FIXED: Final[Mapping[str, str]] = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "TORCHINDUCTOR_DETERMINISTIC": "1",
}

# Switches that make the same machine compute other bits without any trace in the versions.
REMOVED: Final = (
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_DEBUG_CPU_TYPE",
    "NPY_DISABLE_CPU_FEATURES",
    "NPY_ENABLE_CPU_FEATURES",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "CUBLASLT_WORKSPACE_SIZE",
    "DISABLE_ADDMM_CUDA_LT",
    "DNNL_MAX_CPU_ISA",
    "MKL_DYNAMIC",
    "TORCHINDUCTOR_EMULATE_PRECISION_CASTS",
    "TORCHINDUCTOR_MAX_AUTOTUNE",
    "TORCH_BLAS_PREFER_CUBLASLT",
)


def prepare_environment() -> None:
    """Makes the process compute what every other process on this machine computes."""
    for name in REMOVED:
        os.environ.pop(name, None)
    os.environ.update(FIXED)
