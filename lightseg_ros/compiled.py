# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How Numba compiles our kernels."""
from typing import Any

import numba


def compiled(function: Any) -> Any:
    """Compile a function when it is first called; it drops the GIL, and is kept on disk if it can be."""
    options: dict[str, Any] = {'nogil': True, 'error_model': 'numpy', 'fastmath': {'contract'}}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder that it may write to
        return numba.njit(**options)(function)
