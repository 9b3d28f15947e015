"""A readable error when forward-mode differentiation hits a reverse-only backend.

A `jax.custom_vjp` function does not support forward mode, and JAX's own error names neither the
backend nor an alternative.
"""

from functools import partial
from typing import Any, TypeVar

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from bilstm_attn.errors import UserError

Tree = TypeVar("Tree")


def reverse_only(backend: str, tree: Tree) -> Tree:
    """Returns `tree`; forward-mode differentiation through it raises a `UserError`.

    Reverse mode only transposes a marker primitive. Forward mode evaluates the primitive, which
    raises the error.
    """
    return jax.tree.map(partial(_identity, backend), tree)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _identity(backend: str, array: Array) -> Array:
    return array


@_identity.defjvp
def _mark(backend: str, primals: tuple[Array], tangents: tuple[Any]) -> tuple[Array, Any]:
    return primals[0], _tangent.bind(tangents[0], backend=backend)


def _refuse(*_: Any, backend: str) -> Any:
    raise UserError(f"backend {backend} does not support forward mode; use backend plain")


_tangent = Primitive("tangent_in_reverse_mode_only")
_tangent.def_impl(_refuse)
_tangent.def_abstract_eval(lambda tangent, *, backend: tangent)
ad.deflinear2(_tangent, lambda cotangent, tangent, *, backend: [cotangent])
batching.defvectorized(_tangent)
mlir.register_lowering(_tangent, _refuse)
