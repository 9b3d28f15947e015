"""Matmul precision: operands may be rounded; accumulation is always float32."""

from contextlib import AbstractContextManager
from typing import TypeVar

import jax
from jax import lax
from jaxtyping import Array

from bilstm_attn.config import MatmulPrecision

Tree = TypeVar("Tree")

# Values of jax.default_matmul_precision. BF16_BF16_F32 also applies to derivatives.
PRECISIONS: dict[MatmulPrecision, str] = {
    "float32": "float32",
    "tensorfloat32": "tensorfloat32",
    "bfloat16": "BF16_BF16_F32",
}


def matmul_precision_context(matmul_precision: MatmulPrecision) -> AbstractContextManager[None]:
    """Returns a context manager that sets the matmul precision on GPU and TPU.

    JAX's default on these devices is below float32. A CPU always computes in float32.
    """
    return jax.default_matmul_precision(PRECISIONS[matmul_precision])


def round_operands(tree: Tree, matmul_precision: MatmulPrecision) -> Tree:
    """Rounds arrays of rank 2 or more to bfloat16 if that is the precision, else returns `tree`.

    The gradient is straight-through. Needed on CPU, whose matmuls do not round their operands.
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
