"""Compile every Triton kernel for a GPU that need not be there: `python tests/kernels/compile_gpu.py 90`.

Prints, per kernel, the registers and the bytes of shared memory and stack; ends with an error where one does not
compile, or needs more shared memory than a block has on every GPU of compute capability 8 and later (99 KiB).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from conceptome_kernels.gpu import contingency, pursuit, sparse, topk, training

SHARED = 99 * 1024
FLOATS, INTEGERS, LONGS, BYTES, DOUBLES, HALVES = "*fp32", "*i32", "*i64", "*u8", "*fp64", "*bf16"
SIZE, NUMBER, NOTHING = "i32", "fp32", None
TILE = {name: side for name, side in topk.SIDES.items() if name != "num_warps"}
CHUNKS = {"CODES": sparse.CODES, "BLOCK": sparse.WIDEST}
SEARCH = {"KEPT": 5, "SPAN": pursuit.SPAN, "CODES": pursuit.CODES}
TERM = [FLOATS, LONGS, INTEGERS, FLOATS, FLOATS, NUMBER]
ENCODER = [FLOATS, FLOATS, FLOATS, FLOATS]
# Kernel, types of its arguments (None: left out), constants, warps.
KERNELS = [
    *(
        (topk._tile_keys, [*ENCODER, closed, LONGS, INTEGERS, *[SIZE] * 4], {"MAGNITUDE": big, "KEPT": 8, **TILE}, 8)
        for closed, big in ((NOTHING, False), (BYTES, True))
    ),
    (
        topk._tile_bounds,
        [HALVES, HALVES, *[FLOATS] * 5, LONGS, *[SIZE] * 4, NUMBER, NUMBER],
        {"BITS": False, "KEPT": 8, **TILE, "DEPTH": 2 * topk.DEPTH},
        8,
    ),
    (topk._rescore, [*ENCODER, INTEGERS, FLOATS, SIZE, SIZE], {"CODES": 16, "BLOCK": 256}, 4),
    (topk._count_above, [*ENCODER, FLOATS, LONGS, INTEGERS, *[SIZE] * 4], TILE, 8),
    (topk._write_above, [*ENCODER, FLOATS, LONGS, INTEGERS, FLOATS, *[SIZE] * 4], TILE, 8),
    (sparse._decode, [FLOATS, FLOATS, INTEGERS, FLOATS, FLOATS, FLOATS, DOUBLES, SIZE, SIZE], CHUNKS, 4),
    (sparse._decode, [FLOATS, NOTHING, INTEGERS, FLOATS, FLOATS, FLOATS, NOTHING, SIZE, SIZE], CHUNKS, 4),
    (sparse._in_codes, [FLOATS, INTEGERS, FLOATS, FLOATS, FLOATS, NUMBER, SIZE, SIZE], CHUNKS, 4),
    (sparse._in_atoms, [FLOATS, FLOATS, LONGS, INTEGERS, *[FLOATS] * 5, SIZE], CHUNKS, 4),
    (sparse._column_sums, [FLOATS, DOUBLES, SIZE, SIZE], {"ROWS": 64, "COLUMNS": 32}, 4),
    *(
        (
            training._update,
            [FLOATS, *TERM, *aux, *[FLOATS] * 10, SIZE, SIZE, *[NUMBER] * 5],
            {"ATOMS": training.ATOMS, "CODES": training.TILE // 1024, "BLOCK": 1024},
            8,
        )
        for aux in (TERM, [*[NOTHING] * 5, NUMBER])
    ),
    (pursuit._store_scores, [FLOATS, FLOATS, FLOATS, SIZE, SIZE, SIZE], TILE, 8),
    *(
        (pursuit._move, [FLOATS, FLOATS, *fit, BYTES, LONGS, SIZE, SIZE, SIZE], {"MAGNITUDE": True, **SEARCH}, 4)
        for fit in ([INTEGERS, FLOATS, FLOATS], [NOTHING, NOTHING, FLOATS])
    ),
    (
        contingency._tables,
        [LONGS, INTEGERS, FLOATS, BYTES, FLOATS, LONGS, LONGS, SIZE, SIZE, SIZE],
        {"SIDE": contingency.SIDE, "CODES": contingency.CODES},
        4,
    ),
]


def compiled(kernel, types, constants, warps, capability):
    """A kernel for CUDA GPUs of this compute capability."""
    names = kernel.arg_names
    signature = dict(zip(names, types)) | dict.fromkeys(constants, "constexpr")
    left_out = {name: None for name, kind in signature.items() if kind is NOTHING}
    signature |= dict.fromkeys(left_out, "constexpr")
    assert list(signature) == names, (kernel.__name__, names)
    # torch's allocations begin at multiples of 16 bytes.
    aligned = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(kernel, signature, constants | left_out, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})


def main():
    capability = int(sys.argv[1])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    for kernel, *how in KERNELS:
        result = compiled(kernel, *how, capability)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            Path(file.name).write_bytes(result.asm["cubin"])
            said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", said).groups()
        shared = result.metadata.shared
        print(f"{kernel.__name__}: {registers} registers, {shared} bytes shared, {stack} stack", flush=True)
        if shared > SHARED:
            sys.exit(f"{kernel.__name__} needs {shared} bytes of shared memory: more than {SHARED}")


if __name__ == "__main__":
    main()
