"""The strict harness: checked shapes, no silent broadcasting, several virtual devices."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"  # the tolerances are those of float32 on a CPU

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
assert jax.device_count() == 4  # and stays so, whatever a test asks for
install_import_hook("bilstm_attn", "beartype.beartype")
