"""Writes layouts.txt: where the lanes' values of mma, wgmma, ldmatrix and stmatrix lie, as the package
tensor-layouts has them, and where elements of a swizzled operand of wgmma lie in shared memory.

    pip install tensor-layouts==0.3.2 && python layouts.py > layouts.txt

A line: instruction, operand, threads, values of each; then one number per value, threads slowest.
- mma.SHAPE.BITS, wgmma.SHAPE: row + rows * column (A: m, k; B: n, k; C: m, n).
- ldmatrix, stmatrix: element of the matrices laid one behind the other, row by row.
- descriptor: operand is major-swizzle, numbers are element offsets of (row, k), k slowest.
"""

from tensor_layouts import Layout, atoms_nv as nv
from tensor_layouts.layouts import Swizzle


def line(name, operand, layout, threads, values, scale=1):
    at = [layout(t, v * scale) // scale for t in range(threads) for v in range(values)]
    assert len(set(at)) == len(at), name
    print(name, operand, threads, values, *at)


def size(shape):
    if isinstance(shape, int):
        return shape
    product = 1
    for part in shape:
        product *= size(part)
    return product


WIDTHS = {"f16": 16, "bf16": 16, "tf32": 32, "f64": 64, "s8": 8, "s4": 4, "b1": 1, "e4m3": 8, "e5m2": 8}
seen = set()
for atom in nv.MMA_ATOMS_SM80 + nv.MMA_ATOMS_SM89 + nv.MMA_ATOMS_SM90:
    if "C64" in atom.name:
        continue
    # One of each shape and width of elements: types of one width are laid out alike.
    parts = atom.ptx.split(".")
    name = f"mma.{parts[3]}.{WIDTHS[parts[7]]}"
    if name in seen:
        continue
    seen.add(name)
    layouts = (atom.a_layout, atom.b_layout, atom.c_layout)
    if name == "mma.m16n8k32.4":
        # The package, as CUTLASS, gives one element to two lanes here. The ISA's B is that of m8n8k32.
        layouts = (atom.a_layout, nv.SM80_8x8x32_S32S4S4S32_TN.b_layout, atom.c_layout)
    for operand, layout in zip("abc", layouts):
        line(name, operand, layout, 32, size(layout.shape[1]))

for n in (8, 24, 64):
    layout = nv.gmma_c_layout(n)
    line(f"wgmma.m64n{n}", "c", layout, 128, n // 2)

for atom in nv.COPY_ATOMS_SM75 + nv.COPY_ATOMS_SM90:
    parts = atom.ptx.split(".")
    count = int(next(part for part in parts if part in ("x1", "x2", "x4"))[1:])
    side = atom.dst_layout_bits if parts[0] == "ldmatrix" else atom.src_layout_bits
    name = parts[0] + f".x{count}" + (".trans" if "trans" in parts else "")
    line(name, "r", side, 32, 2 * count, 16)

# Canonical operand layouts of cute/arch/mma_sm90_desc.hpp, in elements of 16 bits (T = 8 to 16 bytes), for a
# tile of 64 rows and 16 k. Leading and stride offsets are whatever the table's user puts in the descriptor.
T, LEADING = 8, 2048
for bits, name in ((0, "none"), (1, "32"), (2, "64"), (3, "128")):
    width = T << bits
    STRIDE = 512 if bits else 128
    if bits == 0:
        k_major = Layout(((8, 8), (T, 2)), ((T, STRIDE), (1, LEADING)))
        mn_major = Layout(((T, 8), (8, 2)), ((1, STRIDE), (T, LEADING)))
    else:
        k_major = Layout(((8, 8), (T, 2)), ((width, STRIDE), (1, T)))
        chunks = 1 << bits
        mn_major = Layout(
            ((T, chunks, 64 // width), (8, 2)), ((1, T, LEADING), (width, STRIDE))
        )
    swizzle = Swizzle(bits, 3, 3)
    for major, layout in (("k", k_major), ("mn", mn_major)):
        at = [swizzle(layout(row, k)) for k in range(16) for row in range(64)]
        print("descriptor", f"{major}-{name}", 16, 64, *at)
