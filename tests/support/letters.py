"""A plug-in with a tokeniser, for tests: every `size` characters are a word."""

import itertools

from bilstm_attn.data.tokenisers import Tokeniser


class Letters(Tokeniser):
    """Every `size` characters are a word."""

    version = 3

    def __init__(self, size: int = 1):
        self.size = size

    def __call__(self, text):
        return [text[start:stop] for start, stop in self.spans(text)]

    def spans(self, text):
        edges = [*range(0, len(text), self.size), len(text)]
        return list(itertools.pairwise(edges))


TOKENISERS = {"letters": Letters}
