"""The smallest language model: the next token from the current one alone, as a transformers model.

With a table, `model(input_ids=[[3, 7]]).logits[0, 1]` is row 7 of it, whatever stands before. Trained long enough its
loss approaches the entropy of the bigram counts: the baseline of any model of longer context.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]


class BigramConfig(PreTrainedConfig):
    """Shape of a bigram model.

    hidden: widths of the layers between a token and the next one's logits; empty: a table, (V, V).
    n_positions: longest text that it is given; it looks at one token of it.
    """

    model_type = "multitask-bigram"

    def __init__(
        self, vocab_size: int = 300, hidden: tuple[int, ...] = (), n_positions: int = 256, **others: Any
    ) -> None:
        self.vocab_size, self.hidden, self.n_positions = vocab_size, list(hidden), n_positions
        self.max_position_embeddings, self.num_hidden_layers = n_positions, len(hidden) + 1
        others["tie_word_embeddings"] = False
        super().__init__(**others)


class BigramLMHeadModel(PreTrainedModel, GenerationMixin):
    """The next token from the current one: a table of logits, or a feed-forward network of it (Bengio et al., 2003)."""

    config_class = BigramConfig
    base_model_prefix = "network"

    def __init__(self, config: BigramConfig) -> None:
        super().__init__(config)
        widths = [*config.hidden, config.vocab_size]
        layers: list[nn.Module] = [nn.Embedding(config.vocab_size, widths[0])]
        for one, other in itertools.pairwise(widths):
            layers += [nn.ReLU(), nn.Linear(one, other)]
        self.network = nn.Sequential(*layers)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Small weights: at first every token is about as likely as any other."""
        if isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=1.0 if self.config.hidden else 0.02)

    def next_logits(self, ids: Tensor) -> Tensor:
        """Logits (..., V) of the token after each id (...)."""
        logits: Tensor = self.network(ids)
        return logits

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> CausalLMOutput:
        """Logits (B, T, V), and with labels (B, T) the mean nats of those that are not -100, the first left out.

        attention_mask: taken and passed over, as transformers' `generate` gives one.
        """
        logits = self.next_logits(input_ids)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    def get_input_embeddings(self) -> nn.Module:
        """The first layer."""
        first: nn.Module = self.network[0]
        return first

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **kwargs: Any) -> dict[str, object]:
        """The last token is all that is looked at."""
        return {"input_ids": input_ids[:, -1:]}


AutoConfig.register(BigramConfig.model_type, BigramConfig)
AutoModelForCausalLM.register(BigramConfig, BigramLMHeadModel)


_WEIGHTS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
MOST_PAIRS = 20_000_000
"""Counted at most: some 500 MB while they are sorted."""


class BigramCounts:
    """A count-based bigram model: nats of tokens by their frequency, and by their frequency after the token before.

    P(b|a) = (n(ab) + k P(b)) / (n(a) + k): pairs, smoothed towards single tokens by a Dirichlet prior of weight k
    (MacKay & Peto, 1995); of a few values, k is the one that gives a tenth of the training pairs the highest
    likelihood when the others are counted.

    before, targets: ids (N,) of pairs; the first `MOST_PAIRS` are counted. vocab_size: number of different ids.
    """

    def __init__(self, before: Ints, targets: Ints, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        before, targets = before[:MOST_PAIRS].astype(np.int64), targets[:MOST_PAIRS].astype(np.int64)
        is_held = np.arange(len(targets)) % 10 == 9
        self._count(before[~is_held], targets[~is_held])
        self.weight = _WEIGHTS[0]
        tried = {}
        for weight in _WEIGHTS if is_held.any() else ():
            self.weight = weight
            tried[weight] = float(self.bigram(before[is_held], targets[is_held]).sum())
        self.weight = min(tried, key=lambda weight: tried[weight]) if tried else _WEIGHTS[0]
        self._count(before, targets)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All counts, to be stored; with `weight`, `from_arrays` makes the same model of them."""
        return {"unigram": self._share, "firsts": self._firsts, "pairs": self._pairs, "num_pairs": self._num}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], weight: float) -> "BigramCounts":
        """The model whose `arrays` and `weight` these are."""
        found = cls.__new__(cls)
        found._share, found._firsts, found._pairs, found._num = (
            arrays[name] for name in ("unigram", "firsts", "pairs", "num_pairs")
        )
        found.vocab_size, found.weight = len(found._share), weight
        return found

    def _count(self, before: Ints, targets: Ints) -> None:
        singles = np.bincount(targets, minlength=self.vocab_size) + 1.0
        self._share = singles / singles.sum()
        self._firsts = np.bincount(before, minlength=self.vocab_size)
        self._pairs, self._num = np.unique(before * self.vocab_size + targets, return_counts=True)

    def unigram(self, targets: Ints) -> Floats:
        """Nats (M,) of ids by their frequency, with add-one smoothing."""
        nats: Floats = -np.log(self._share[targets])
        return nats

    def bigram(self, before: Ints, targets: Ints) -> Floats:
        """Nats (M,) of ids by their frequency after the ids before them, (M,)."""
        sought = before.astype(np.int64) * self.vocab_size + targets
        at = np.minimum(np.searchsorted(self._pairs, sought), max(0, len(self._pairs) - 1))
        found = np.where(self._pairs[at] == sought, self._num[at], 0) if len(self._pairs) else np.zeros(len(sought))
        share = (found + self.weight * self._share[targets]) / (self._firsts[before] + self.weight)
        nats: Floats = -np.log(share)
        return nats

    @property
    def entropy(self) -> float:
        """Nats of the next token given the current one, as counted, without smoothing: what training comes down to."""
        total = self._num.sum()
        firsts = self._firsts[self._pairs // self.vocab_size]
        return float(-(self._num * np.log(self._num / firsts)).sum() / total)
