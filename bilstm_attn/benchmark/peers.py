"""The table of benchmarked implementations. A new one is one class and one line in `PEERS`."""

from bilstm_attn.benchmark.cudnn_peer import CudnnInJax
from bilstm_attn.benchmark.flax_peer import Flax
from bilstm_attn.benchmark.keras_peer import KerasOnJax, KerasOnTensorFlow
from bilstm_attn.benchmark.ours import Native, Pallas, Plain, Scan
from bilstm_attn.benchmark.peer import Peer
from bilstm_attn.benchmark.torch_peer import TorchFlipped, TorchPacked, TorchPadded

PEERS: dict[str, type[Peer]] = {
    "ours, native": Native,
    "ours, pallas": Pallas,
    "ours, scan": Scan,
    "ours, plain": Plain,
    "flax nnx.RNN": Flax,
    "jax cudnn": CudnnInJax,
    "keras on jax": KerasOnJax,
    "keras on tensorflow": KerasOnTensorFlow,
    "torch padded": TorchPadded,
    "torch flipped": TorchFlipped,
    "torch packed": TorchPacked,
}
