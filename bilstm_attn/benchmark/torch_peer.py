"""The tutorial's model in PyTorch: padded, packed, or with texts reversed within their length."""

import importlib
from typing import Any

import numpy as np

from bilstm_attn.benchmark.peer import VOCABULARY, Peer, Setting, Unmeasured
from bilstm_attn.types import Batch, Params


class TorchPadded(Peer):
    """`torch.nn.LSTM` on the padded batch, which it reads without a mask, padding included.

    One dropout mask per layer, shared by both directions; the attention is masked.
    """

    def __init__(self, params: Params, setting: Setting):
        config = setting.config
        self._torch = torch = importlib.import_module("torch")
        if setting.devices is not None:
            torch.set_num_threads(setting.devices)
        if setting.on_gpu and not torch.cuda.is_available():
            raise Unmeasured("torch finds no GPU")
        self._device = torch.device("cuda" if setting.on_gpu else "cpu")
        self._bfloat16 = config.matmul_precision == "bfloat16"
        # By default PyTorch uses TensorFloat32 in cuDNN.
        torch.backends.cudnn.allow_tf32 = config.matmul_precision != "float32"
        torch.backends.cuda.matmul.allow_tf32 = config.matmul_precision != "float32"
        nn, run_layer = torch.nn, self.run_layer

        class Module(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embedding = nn.Embedding(VOCABULARY, config.embedding_size)
                sizes = (config.embedding_size, config.states_size)
                self.layers = nn.ModuleList(
                    nn.LSTM(size, config.hidden_size, batch_first=True, bidirectional=True)
                    for size in sizes
                )
                self.states_layer = nn.Linear(config.states_size, config.attention_size)
                self.query_layer = nn.Linear(config.states_size, config.attention_size, bias=False)
                self.vector = nn.Linear(config.attention_size, 1, bias=False)
                self.dense = nn.Linear(config.states_size, config.dense_size)
                self.input_dropout = nn.Dropout(config.input_dropout)
                self.head_dropout = nn.Dropout(config.head_dropout)
                self.logit = nn.Linear(config.dense_size, 1)

            def forward(self, tokens: Any, lengths: Any) -> Any:
                x, query = self.embedding(tokens), None
                for lstm in self.layers:
                    mask = self.input_dropout(torch.ones_like(x[:, :1]))
                    x, query = run_layer(lstm, x * mask, lengths)
                units = torch.tanh(self.states_layer(x) + self.query_layer(query)[:, None])
                mask = torch.arange(x.shape[1], device=x.device)[None] < lengths[:, None]
                scores = self.vector(units)[..., 0].float().masked_fill(~mask, -1e9)
                context = (torch.softmax(scores, dim=1)[..., None] * x).sum(dim=1)
                return self.logit(self.head_dropout(torch.relu(self.dense(context))))[:, 0].float()

        self._model: Any = Module().to(self._device)
        self.set_params(params)
        self._optimizer = torch.optim.Adam(self._model.parameters())

    def run_layer(self, lstm: Any, x: Any, lengths: Any) -> tuple[Any, Any]:
        """Returns a layer's states `[b t d]` and its last states `[b d]`."""
        del lengths
        states, (last, _) = lstm(x)
        return states, self._torch.cat([last[0], last[1]], dim=-1)

    def set_params(self, params: Params) -> None:
        """Copies the parameters into the module; PyTorch's matrices are transposed."""
        attention = params["attention"]
        values = {
            "embedding.weight": params["embedding"],
            "states_layer.weight": attention["states_kernel"].T,
            "states_layer.bias": attention["bias"],
            "query_layer.weight": attention["query_kernel"].T,
            "vector.weight": attention["vector"].T,
        }
        for name in ("dense", "logit"):
            values[f"{name}.weight"] = params[name]["kernel"].T
            values[f"{name}.bias"] = params[name]["bias"]
        for depth, layer in enumerate(params["encoder"]["layers"].values()):
            for direction, suffix in (("forward", "l0"), ("backward", "l0_reverse")):
                cell, lstm = layer[direction], f"layers.{depth}"
                values[f"{lstm}.weight_ih_{suffix}"] = cell["input_kernel"].T
                values[f"{lstm}.weight_hh_{suffix}"] = cell["recurrent_kernel"].T
                values[f"{lstm}.bias_ih_{suffix}"] = cell["bias"]
                values[f"{lstm}.bias_hh_{suffix}"] = np.zeros_like(cell["bias"])
        tensors = {name: self._torch.tensor(np.array(value)) for name, value in values.items()}
        self._model.load_state_dict(tensors)

    def _logits(self, batch: Batch) -> Any:
        tokens, lengths = (
            self._torch.from_numpy(np.array(array, np.int64)).to(self._device)
            for array in (batch.tokens, batch.length)
        )
        kind, bfloat16 = self._device.type, self._torch.bfloat16
        with self._torch.autocast(kind, dtype=bfloat16, enabled=self._bfloat16):
            return self._model(tokens, lengths)

    def logits(self, batch: Batch) -> np.ndarray:
        """Returns the logits `[b]`."""
        self._model.eval()
        with self._torch.inference_mode():
            return self._logits(batch).cpu().numpy()

    def train_step(self, batch: Batch) -> None:
        """Takes one step."""
        self._model.train()
        self._optimizer.zero_grad()
        labels = self._torch.tensor(np.asarray(batch.label, np.float32), device=self._device)
        loss = self._torch.nn.functional.binary_cross_entropy_with_logits
        loss(self._logits(batch), labels).backward()
        self._optimizer.step()
        if self._device.type == "cuda":
            self._torch.cuda.synchronize()


class TorchPacked(TorchPadded):
    """`torch.nn.LSTM` on packed sequences, by which PyTorch skips the padding."""

    def run_layer(self, lstm: Any, x: Any, lengths: Any) -> tuple[Any, Any]:
        """Returns a layer's states `[b t d]` and its last states `[b d]`."""
        packing = self._torch.nn.utils.rnn
        packed = packing.pack_padded_sequence(
            x, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        states, query = super().run_layer(lstm, packed, lengths)
        states, _ = packing.pad_packed_sequence(states, batch_first=True, total_length=x.shape[1])
        return states, query


class TorchFlipped(TorchPadded):
    """`torch.lstm` per direction; the backward one reads each text reversed within its length.

    This skips the padding without packing, so cuDNN can choose its fastest algorithm.
    """

    def run_layer(self, lstm: Any, x: Any, lengths: Any) -> tuple[Any, Any]:
        """Returns a layer's states `[b t d]` and its last states `[b d]`."""
        torch = self._torch
        steps = torch.arange(x.shape[1], device=x.device)[None]
        mask = steps < lengths[:, None]
        reversal = torch.where(mask, lengths[:, None] - 1 - steps, steps)[..., None]
        ends = (lengths - 1).clamp(min=0)[:, None, None]
        zero = x.new_zeros(1, x.shape[0], lstm.hidden_size)
        directions, last = [], []
        for suffix in ("l0", "l0_reverse"):
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            params = [getattr(lstm, f"{name}_{suffix}") for name in names]
            inputs = x if suffix == "l0" else x.gather(1, reversal.expand_as(x))
            # has_biases, num_layers, dropout, train, bidirectional, batch_first
            options = (True, 1, 0.0, self._model.training, False, True)
            states, *_ = torch.lstm(inputs, (zero, zero), params, *options)
            last.append(states.gather(1, ends.expand(-1, 1, states.shape[2]))[:, 0])
            if suffix == "l0_reverse":
                states = states.gather(1, reversal.expand_as(states))
            directions.append(states * mask[..., None])
        return torch.cat(directions, dim=-1), torch.cat(last, dim=-1)
