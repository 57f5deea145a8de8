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
from smartsplat.optim import kernels as fit
from smartsplat.render import kernels

FLOATS = "taps similarities differences maps seen known image slope rows low last "
FLOATS += "out losses geometry colors steps target weight parts_out planes means shapes"
FLOATS, DOUBLES = FLOATS.split(), "norms curvatures previous rest ready direction product solution step".split()
SCALARS = "cut share damping min_scale max_scale l1_share ssim_share".split()
INTEGERS = "starts items entries owners keys".split()
TYPES = dict.fromkeys(FLOATS, "*fp32") | dict.fromkeys(INTEGERS, "*i32")
TYPES |= dict.fromkeys(DOUBLES, "*fp64") | dict.fromkeys(SCALARS, "fp32")

def build(kernel, types={}, **constants):
    types = TYPES | types
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source, warps = ASTSource(kernel, signature, places), 4 if "BLOCK" in constants else 1
    made = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    assert made.asm["cubin"]

size = {"ROWS": 16, "COLUMNS": 16}
build(kernels.place, OWNERS=32)
build(kernels.place, {"means": "*fp64"}, OWNERS=32)
build(kernels.list_bins, keys=None, owners=None, OWNERS=32, **size)
build(kernels.list_bins, {"keys": "*i16"}, OWNERS=32, **size)
build(kernels.draw, BANDS=3, steps=None, target=None, weight=None, **size)
build(kernels.draw, BANDS=3, steps=None, **size)
build(kernels.draw, BANDS=3, target=None, **size)
build(kernels.gather, {"slots": "*i64"}, BANDS=3, **size)
build(kernels.add_parts, {"out": "*fp64"}, KINDS=8, WIDE=8, OWNERS=1, PARTS=32)
build(fit.precondition, {"out": "*fp64"}, BANDS=3, BLOCK=128)
build(fit.damp, BANDS=3, BLOCK=128)
build(fit.advance, BLOCK=1024, WIDE=1024)
build(fit.turn, BLOCK=1024, WIDE=1024)
build(fit.move, BANDS=3, BLOCK=128)
build(fit.smooth, DOWN=True, RADIUS=5, BLOCK=1024)
build(fit.ssim_maps, BLOCK=1024)
build(fit.mixed_slope, BLOCK=1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton brings its assembler on Linux only")
def test_every_kernel_compiles_for_a_device(tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
