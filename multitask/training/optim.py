"""AdamW and the learning rate of each step."""

import math

import torch

from multitask.config.train import LoopConfig


def learning_rate(config: LoopConfig, step: int, max_steps: int) -> float:
    """Rate of step `step` (from 0): linear warm-up, then cosine (Loshchilov & Hutter, 2017), linear, or constant.

    The schedule would reach `final_learning_rate` at step `max_steps`, so that the last step still learns.
    """
    assert config.learning_rate is not None
    warmup = min(config.warmup_steps, max_steps // 10)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - warmup) / (max_steps - warmup)
    left = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * left


def make_optimizer(model: torch.nn.Module, config: LoopConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, 2019), fused where it exists; only matrices of layers decay."""
    decays: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim >= 2 and "wte" not in name and "wpe" not in name
            (decays if is_matrix else rest).append(parameter)
    groups = [{"params": decays, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate or 0.0,  # set anew at every step
        betas=(config.beta1, config.beta2),
        fused=device.type in ("cpu", "cuda"),
    )
