"""Jain and Wallace's own protocol: every training review, and the last of eight epochs.

The model of `jain_wallace` without held-out reviews. Test is evaluated after each epoch, and
nothing is selected on it; the authors' code selects the epoch on test in some versions and takes
the last epoch in others. Their test set is a fifth of these reviews; `scripts/study_attention.py`
draws as many.

Source: Jain and Wallace's code, github.com/successar/AttentionExplanation.
Run:    python scripts/train.py jain_wallace_rerun
Result: 87.59, 87.23, 87.33, 86.48, 86.50, 86.32, 85.89, 86.48 % of the 21,731 test reviews of fewer
        than 400 words after epochs 1 to 8, seed 0; 87.92, 87.71, 86.51, 86.98, 86.92, 86.08, 87.23,
        86.74 %, seed 1.
Time:   118-266 s per epoch on two CPU cores (Intel Xeon) with the native kernel, under other load.
"""

from bilstm_attn.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    data=DataConfig(
        validation_examples=0,
        vocabulary_size=14_000,
        max_tokens=400,
        drop_longer=True,
        batch_size=32,
        bucket_edges=(),
    ),
    model=ModelConfig(
        embedding_size=300,
        hidden_size=128,
        layers=1,
        input_dropout=0.0,
        attention="additive_keys",
        attention_size=128,
        dense_size=0,
        head_dropout=0.0,
    ),
    optim=OptimConfig(epsilon=1e-8 / 32, amsgrad=True, l2_penalty=1e-5 / 32),
    train=TrainConfig(epochs=8, eval_split="test", select="last"),
)
