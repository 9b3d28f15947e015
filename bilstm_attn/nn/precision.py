"""What products are computed in: their factors' rounding; sums are float32 in every case."""

from contextlib import AbstractContextManager
from typing import TypeVar

import jax
from jax import lax
from jaxtyping import Array

from bilstm_attn.config import MatmulPrecision

Tree = TypeVar("Tree")

# As jax.default_matmul_precision has them; the last is an algorithm, in derivatives too.
PRECISIONS: dict[MatmulPrecision, str] = {
    "float32": "float32",
    "tensorfloat32": "tensorfloat32",
    "bfloat16": "BF16_BF16_F32",
}


def matmul_precision_context(matmul_precision: MatmulPrecision) -> AbstractContextManager[None]:
    """Returns a context in which products are traced to be computed so, on a GPU or TPU.

    Without one these take less than float32. A CPU computes in float32 whatever is asked.
    """
    return jax.default_matmul_precision(PRECISIONS[matmul_precision])


def round_operands(tree: Tree, matmul_precision: MatmulPrecision) -> Tree:
    """Returns `tree` with its factors, the arrays of two axes and more, rounded if to bfloat16.

    A GPU or TPU would do so itself, a CPU would not. The derivative is that of the identity.
    """
    if matmul_precision != "bfloat16":
        return tree
    return jax.tree.map(lambda array: _round(array) if array.ndim > 1 else array, tree)


@jax.custom_jvp
def _round(array: Array) -> Array:
    return lax.reduce_precision(array, exponent_bits=8, mantissa_bits=7)


@_round.defjvp
def _identity(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _round(primals[0]), tangents[0]
