"""The tutorial's model with stronger regularisation, trained longer.

Half of the distinct words of a review are dropped in training (word dropout), the vocabulary is
twice as large, batches are half as large, and the learning rate follows a cosine. 5,000 reviews
are held out by seed; the epoch with the best validation accuracy is evaluated on test, once.

Source: our own; selected by validation accuracy among four settings, one seed and 6 epochs each:
        89.00 % without word dropout, 89.88 at 0.3, 90.04 at 0.5, 90.22 at 0.5 with max pooling.
        The last three are a tie, so the recipe has attention.
Run:    python scripts/train.py best
Result: test accuracy 88.32 ± 0.17 % (88.50, 88.15, 88.31); mean and sample standard deviation,
        seeds 0 to 2.
Time:   41-49 s per epoch on two CPU cores (AMD EPYC) with the native kernel, little other load.
"""

from bilstm_attn.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    data=DataConfig(vocabulary_size=20_000, batch_size=128, bucket_edges=(160, 240, 416)),
    model=ModelConfig(word_dropout=0.5),
    optim=OptimConfig(schedule="cosine", weight_decay=0.1, clip_norm=1.0),
    train=TrainConfig(epochs=8),
)
