"""The tutorial's model in PyTorch: padded, packed, and turned within the lengths."""

import importlib
from typing import Any

import numpy as np

from bilstm_attn.benchmark.peer import VOCABULARY, Peer, Setting, Unmeasured
from bilstm_attn.types import Batch, Params


class TorchPadded(Peer):
    """`torch.nn.LSTM` on the padded batch: it knows no mask, and reads back from the padding.

    One dropout mask a layer, for both directions; the attention has a mask.
    """

    def __init__(self, params: Params, setting: Setting):
        config = setting.config
        self._torch = torch = importlib.import_module("torch")
        if setting.devices is not None:
            torch.set_num_threads(setting.devices)
        if setting.on_gpu and not torch.cuda.is_available():
            raise Unmeasured("this torch sees no GPU")
        self._device = torch.device("cuda" if setting.on_gpu else "cpu")
        self._rounded = config.matmul_precision == "bfloat16"
        # PyTorch takes TensorFloat32 in cuDNN without being asked.
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
                self.of_states = nn.Linear(config.states_size, config.attention_size)
                self.of_query = nn.Linear(config.states_size, config.attention_size, bias=False)
                self.vector = nn.Linear(config.attention_size, 1, bias=False)
                self.dense = nn.Linear(config.states_size, config.dense_size)
                self.noise = nn.Dropout(config.input_dropout)
                self.head_noise = nn.Dropout(config.head_dropout)
                self.logit = nn.Linear(config.dense_size, 1)

            def forward(self, tokens: Any, lengths: Any) -> Any:
                x, query = self.embedding(tokens), None
                for lstm in self.layers:
                    x, query = run_layer(lstm, x * self.noise(torch.ones_like(x[:, :1])), lengths)
                units = torch.tanh(self.of_states(x) + self.of_query(query)[:, None])
                mask = torch.arange(x.shape[1], device=x.device)[None] < lengths[:, None]
                scores = self.vector(units)[..., 0].float().masked_fill(~mask, -1e9)
                context = (torch.softmax(scores, dim=1)[..., None] * x).sum(dim=1)
                return self.logit(self.head_noise(torch.relu(self.dense(context))))[:, 0].float()

        self._model: Any = Module().to(self._device)
        self.fill(params)
        self._optimizer = torch.optim.Adam(self._model.parameters())

    def run_layer(self, lstm: Any, x: Any, lengths: Any) -> tuple[Any, Any]:
        """Returns a layer's states `[b t d]` and the last ones `[b d]`."""
        del lengths
        states, (last, _) = lstm(x)
        return states, self._torch.cat([last[0], last[1]], dim=-1)

    def fill(self, params: Params) -> None:
        """Copies them into the module's, whose matrices are transposed."""
        attention = params["attention"]
        values = {
            "embedding.weight": params["embedding"],
            "of_states.weight": attention["states_kernel"].T,
            "of_states.bias": attention["bias"],
            "of_query.weight": attention["query_kernel"].T,
            "vector.weight": attention["vector"].T,
        }
        for name in ("dense", "logit"):
            values[f"{name}.weight"] = params[name]["kernel"].T
            values[f"{name}.bias"] = params[name]["bias"]
        for depth, layer in enumerate(params["encoder"]["layers"].values()):
            for way, ending in (("forward", "l0"), ("backward", "l0_reverse")):
                of, lstm = layer[way], f"layers.{depth}"
                values[f"{lstm}.weight_ih_{ending}"] = of["input_kernel"].T
                values[f"{lstm}.weight_hh_{ending}"] = of["recurrent_kernel"].T
                values[f"{lstm}.bias_ih_{ending}"] = of["bias"]
                values[f"{lstm}.bias_hh_{ending}"] = np.zeros_like(of["bias"])
        tensors = {name: self._torch.tensor(np.array(value)) for name, value in values.items()}
        self._model.load_state_dict(tensors)

    def _compute(self, batch: Batch) -> Any:
        tokens, lengths = (
            self._torch.from_numpy(np.array(part, np.int64)).to(self._device)
            for part in (batch.tokens, batch.length)
        )
        kind, bfloat16 = self._device.type, self._torch.bfloat16
        with self._torch.autocast(kind, dtype=bfloat16, enabled=self._rounded):
            return self._model(tokens, lengths)

    def logits(self, batch: Batch) -> np.ndarray:
        """Returns the logits."""
        self._model.eval()
        with self._torch.inference_mode():
            return self._compute(batch).cpu().numpy()

    def train(self, batch: Batch) -> None:
        """Takes a step."""
        self._model.train()
        self._optimizer.zero_grad()
        labels = self._torch.tensor(np.asarray(batch.label, np.float32), device=self._device)
        loss = self._torch.nn.functional.binary_cross_entropy_with_logits
        loss(self._compute(batch), labels).backward()
        self._optimizer.step()
        if self._device.type == "cuda":
            self._torch.cuda.synchronize()


class TorchPacked(TorchPadded):
    """The same on packed sequences, as its documentation says to: it knows the lengths."""

    def run_layer(self, lstm: Any, x: Any, lengths: Any) -> tuple[Any, Any]:
        """Returns a layer's states `[b t d]` and the last ones `[b d]`."""
        packing = self._torch.nn.utils.rnn
        packed = packing.pack_padded_sequence(
            x, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        states, query = super().run_layer(lstm, packed, lengths)
        states, _ = packing.pad_packed_sequence(states, batch_first=True, total_length=x.shape[1])
        return states, query


class TorchFlipped(TorchPadded):
    """The same, each direction by itself, the backward one on rows turned within their length.

    It knows the lengths without packing, so that cuDNN may take its fastest way.
    """

    def run_layer(self, lstm: Any, x: Any, lengths: Any) -> tuple[Any, Any]:
        """Returns a layer's states `[b t d]` and the last ones `[b d]`."""
        torch = self._torch
        steps = torch.arange(x.shape[1], device=x.device)[None]
        own = steps < lengths[:, None]
        turn = torch.where(own, lengths[:, None] - 1 - steps, steps)[..., None]
        ends = (lengths - 1).clamp(min=0)[:, None, None]
        zero = x.new_zeros(1, x.shape[0], lstm.hidden_size)
        walks, last = [], []
        for ending in ("l0", "l0_reverse"):
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            weights = [getattr(lstm, f"{name}_{ending}") for name in names]
            read = x if ending == "l0" else x.gather(1, turn.expand_as(x))
            # Has biases, 1 layer, no dropout, trains or not, not both ways, batch first.
            options = (True, 1, 0.0, self._model.training, False, True)
            states, *_ = torch.lstm(read, (zero, zero), weights, *options)
            last.append(states.gather(1, ends.expand(-1, 1, states.shape[2]))[:, 0])
            back = states if ending == "l0" else states.gather(1, turn.expand_as(states))
            walks.append(back * own[..., None])
        return torch.cat(walks, dim=-1), torch.cat(last, dim=-1)
