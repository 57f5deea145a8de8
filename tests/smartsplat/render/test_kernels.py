"""The CUDA engine's kernels compile, device or not: the interpreter takes more than the compiler does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Of each kernel's arguments, those that are not 32-bit integers.
COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from smartsplat.render import kernels

FLOATS = "out losses geometry colors steps target weight parts_out planes".split()
INTEGERS = "starts items slots order parts strips".split()

def build(kernel, warps, **constants):
    types = dict.fromkeys(FLOATS, "*fp32") | dict.fromkeys(INTEGERS, "*i32") | {"cut": "fp32"}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    made = compile(ASTSource(kernel, signature, places), target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    assert made.asm["cubin"]

size = {"BANDS": 3, "ROWS": 16, "COLUMNS": 16}
build(kernels.draw, 2, steps=None, target=None, weight=None, **size)
build(kernels.draw, 2, steps=None, **size)
build(kernels.draw, 2, target=None, **size)
build(kernels.gather_strips, 1, BANDS=3, ROWS=8, COLUMNS=16)
build(kernels.gather_bins, 2, **size)
build(kernels.add_parts, 1, KINDS=8, WIDE=8, OWNERS=1, PARTS=32)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton brings its assembler on Linux only")
def test_every_kernel_compiles_for_a_device(tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
