"""From examples to tensors: one flat row without padding, or one padded row each.

Examples of 3 and 5 ids, packed: `input_ids` (1, 6), `position_ids` 0 1 0 1 2 3. The last id of each is a label alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from multitask.tokenization.row_encoder import Borders, target_spans


@dataclass(frozen=True)
class Batch:
    """Tensors of one forward pass.

    input_ids, position_ids: (B, T) int64; positions restart at each example.
    targets: (M,) int64 ids that carry loss; never the first of an example. before: (M,) int64 flat positions in B*T of
    the ids just before them. weights: (M,) float32 loss weights. owners: (M,) int64, the example each target belongs
    to. is_target: (M,) bool; False for prompt tokens, which carry loss when they have a weight.
    segment_lengths: of one flat row, how long each of its examples is, in order; None when every row is one example,
    padded at its end. num_tokens: ids that are read, pads left out.
    """

    input_ids: Tensor
    position_ids: Tensor
    targets: Tensor
    before: Tensor
    weights: Tensor
    owners: Tensor
    is_target: Tensor
    segment_lengths: npt.NDArray[np.int64] | None
    num_tokens: int

    @property
    def attention_mask(self) -> Tensor:
        """(B, T) int64: 1 at tokens, 0 at the padding behind a row's end; of rows that are one example each."""
        mask = (self.position_ids > 0).long()
        mask[:, 0] = 1
        return mask

    def to(self, device: torch.device) -> "Batch":
        """On another device."""
        if device.type == "cpu":
            return self
        names = ("input_ids", "position_ids", "targets", "before", "weights", "owners", "is_target")
        pinned = {name: getattr(self, name) for name in names}
        if device.type == "cuda":  # from other memory a copy waits for the GPU
            pinned = {name: tensor.pin_memory() for name, tensor in pinned.items()}
        moved: Any = {name: tensor.to(device, non_blocking=True) for name, tensor in pinned.items()}
        return replace(self, **moved)


Ids = Sequence[int] | npt.NDArray[np.integer[Any]]
Example = tuple[Ids, Borders]
"""Ids of an example, and where its targets begin and end."""


def collate(
    examples: Sequence[Example], layout: Literal["packed", "none"] = "packed", prompt_weight: float = 0.0
) -> Batch:
    """Lays out examples.

    packed: one row (1, sum of lengths). none: one row each (B, longest), padded with id 0 at the end, where causal
    attention never looks and no loss falls.
    """
    lengths = np.array([len(ids) - 1 for ids, _ in examples], np.int64)
    longest = int(lengths.max())
    if layout == "packed":
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        shape = (1, int(lengths.sum()))
    else:
        starts = np.arange(len(examples)) * longest
        shape = (len(examples), longest)
    flat = np.zeros(shape[0] * shape[1], np.int64)
    following, positions = np.zeros_like(flat), np.zeros_like(flat)
    weights = np.zeros(flat.shape, np.float32)
    owners = np.zeros_like(flat)
    is_target = np.zeros(flat.shape, bool)
    for number, ((ids, borders), start) in enumerate(zip(examples, starts.tolist(), strict=True)):
        stop = start + len(ids) - 1
        flat[start:stop], following[start:stop] = ids[:-1], ids[1:]
        positions[start:stop] = np.arange(stop - start)
        weights[start:stop] = prompt_weight
        past = 1
        for begin, end in target_spans(borders, len(ids)):
            if not past <= begin < end:
                raise AssertionError("an example without a prompt, its first token a label, or nothing to predict")
            is_target[start + begin - 1 : start + end - 1] = True
            past = end
        owners[start:stop] = number
    weights[is_target] = 1.0
    before = np.flatnonzero(weights)
    return Batch(
        input_ids=torch.from_numpy(flat).view(shape),
        position_ids=torch.from_numpy(positions).view(shape),
        targets=torch.from_numpy(following[before]),
        before=torch.from_numpy(before),
        weights=torch.from_numpy(weights[before]),
        owners=torch.from_numpy(owners[before]),
        is_target=torch.from_numpy(is_target[before]),
        segment_lengths=lengths if layout == "packed" else None,
        num_tokens=int(lengths.sum()),
    )
