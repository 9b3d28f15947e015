"""The tutorial's model, regularised and trained longer.

Half of a review's distinct words are dropped in training (word dropout), the vocabulary is twice
as large, batches half as large, the learning rate falls along a cosine. 5,000 reviews are held out
by seed; the epoch with the best validation accuracy is measured on the test split, once.

Source: our own; chosen on validation accuracy alone, among four settings with one seed each:
        without word dropout 89.00 %, at 0.3 89.88, at 0.5 90.04, at 0.5 with max pooling 90.22,
        over 6 epochs; a tie but for the first, so attention stays.
Run:    python scripts/train.py best
Result: test accuracy 88.32 ± 0.17 % (88.50, 88.15, 88.31), seeds 0 to 2; 41-49 s an epoch on two
        CPU cores (AMD EPYC) with the native kernel, and little beside it.
"""

from bilstm_attn.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    data=DataConfig(vocabulary_size=20_000, batch_size=128, bucket_edges=(160, 240, 416)),
    model=ModelConfig(word_dropout=0.5),
    optim=OptimConfig(schedule="cosine", weight_decay=0.1, clip_norm=1.0),
    train=TrainConfig(epochs=8),
)
