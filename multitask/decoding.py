"""Greedy answers: prompts of similar length together, padded on the left, each until `<|end|>`.

`generate(model, [[5, 6], [7]], max_new_tokens=8, ...)` -> the ids that the model wrote for each, end marker left off.
"""

from collections.abc import Sequence
from typing import Any

import torch

from multitask.attention import using
from multitask.batching import Ids
from multitask.loss import plain_model


@torch.no_grad()
def generate(
    model: Any, prompts: Sequence[Ids], max_new_tokens: int, end_id: int, pad_id: int, batch_tokens: int
) -> list[tuple[list[int], bool]]:
    """Greedy continuation of each prompt: (ids without the end marker, True if the end marker was written).

    A prompt leaves room: its length and `max_new_tokens` together fit the model's positions.
    """
    device = next(model.parameters()).device
    written: list[tuple[list[int], bool]] = [([], False)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda n: -len(prompts[n]))
    was_training = model.training
    model.eval()
    with using(plain_model(model), "sdpa"):  # transformers' own, which knows left padding and the key-value cache
        while order:
            longest = len(prompts[order[0]])
            size = max(1, batch_tokens // (longest + max_new_tokens))
            numbers, order = order[:size], order[size:]
            ids = torch.full((len(numbers), longest), pad_id)
            mask = torch.zeros_like(ids)
            for row, number in enumerate(numbers):
                ids[row, longest - len(prompts[number]) :] = torch.tensor(prompts[number])
                mask[row, longest - len(prompts[number]) :] = 1
            output = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=end_id,
                pad_token_id=pad_id,
            )[:, longest:].tolist()
            for number, new in zip(numbers, output, strict=True):
                finished = end_id in new
                written[number] = (new[: new.index(end_id)] if finished else new, finished)
    model.train(was_training)
    return written
