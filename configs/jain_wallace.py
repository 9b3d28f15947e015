"""Jain and Wallace's IMDB model, selected on held-out reviews: is its attention an explanation?

One layer, tanh attention over the states alone, no dropout, no dense layer; reviews of fewer than
400 words. 5,000 reviews are held out by seed; the epoch with the best accuracy on them is exported
and measured on test once. Deviations: word vectors start at random unless
`--train.init-from vectors:wiki.simple.vec` gives fastText's; the start
token may be attended to; batches are drawn at random.

Source: Jain and Wallace, 2019, arXiv:1902.10186; constants of their code. They sum the loss over a
        batch where we take the mean, so the penalty and epsilon are their 1e-5 and 1e-8 by 32.
Run:    python scripts/train.py jain_wallace
Result: 88.93 % of the 21,731 test reviews of fewer than 400 words, after the first of eight epochs,
        whose accuracy on the held-out ones was 90.20 % (of the others 84.62 to 88.50 %); seed 0;
        109-211 s an epoch on two CPU cores (Intel Xeon) with the native kernel, other work beside.
"""

from bilstm_attn.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    data=DataConfig(
        vocabulary_size=14_000, max_tokens=400, drop_longer=True, batch_size=32, bucket_edges=()
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
    train=TrainConfig(epochs=8),
)
