"""Does the simulator lay the fragments of matrix instructions out as CuTe does?

The layouts come from the package tensor-layouts, which has CuTe's as data: index of a lane and one
of its values in a matrix, column by column. A kernel that is right in the simulator is right on a
GPU as far as these agree.
"""

import pytest
import torch

import bptt  # noqa: F401  loads the simulator

atoms = pytest.importorskip("tensor_layouts.atoms_nv", reason="tensor-layouts is not installed")

M, N, LANES = 16, 8, 32
INSTRUCTIONS = {
    "bf16": (torch.bfloat16, "SM80_16x8x16_F32BF16BF16F32_TN"),
    "fp16": (torch.float16, "SM80_16x8x16_F32F16F16F32_TN"),
    "tf32": (torch.float32, "SM80_16x8x8_F32TF32TF32F32_TN"),
}


def fragment(matrix, layout, count, dtype):
    """The words [32, registers] in which lanes hold a matrix."""
    columns = matrix.t().flatten()
    held = [[columns[layout(lane, k)] for k in range(count)] for lane in range(LANES)]
    return torch.tensor(held).to(dtype).view(torch.int32)


@pytest.mark.parametrize("number", INSTRUCTIONS)
def test_a_product_in_cutes_layouts(number):
    dtype, name = INSTRUCTIONS[number]
    atom = getattr(atoms, name)
    depth = atom.shape_mnk[2]
    a, b = torch.randint(-8, 9, (M, depth)), torch.randint(-8, 9, (N, depth))
    words_a = fragment(a.float(), atom.a_layout, M * depth // LANES, dtype)
    words_b = fragment(b.float(), atom.b_layout, N * depth // LANES, dtype)
    sums = torch.ops.bptt.simulated_mma(number, words_a, words_b)
    product = (a @ b.t()).t().flatten()
    expected = [[product[atom.c_layout(lane, k)] for k in range(4)] for lane in range(LANES)]
    assert torch.equal(sums, torch.tensor(expected).float())


@pytest.mark.parametrize("number", INSTRUCTIONS)
def test_every_place_of_every_operand_is_somebodys(number):
    atom = getattr(atoms, INSTRUCTIONS[number][1])
    depth = atom.shape_mnk[2]
    sizes = ((atom.a_layout, M * depth), (atom.b_layout, N * depth), (atom.c_layout, M * N))
    for layout, size in sizes:
        places = {layout(lane, k) for lane in range(LANES) for k in range(size // LANES)}
        assert places == set(range(size))
