"""AdamW or Muon, and the learning rate of each step."""

import math
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from multitask.config.train import LoopConfig
from multitask.errors import InputError
from multitask.models.bigram import BigramLMHeadModel


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


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024) for some matrices, AdamW for the rest, as one optimizer with one state.

    Muon's updates are scaled to the size of AdamW's (Liu et al., 2025), so that one learning rate serves both.
    """

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.Optimizer) -> None:
        self._parts = (muon, adamw)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """One state and one list of groups, whoever looks."""
        num = len(self._parts[0].param_groups)
        for part, groups in zip(self._parts, (self.param_groups[:num], self.param_groups[num:]), strict=True):
            part.state, part.param_groups = self.state, groups

    def __getstate__(self) -> dict[str, Any]:
        """For a copy."""
        return {**super().__getstate__(), "_parts": self._parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """After `load_state_dict`, which makes new ones, and of a copy."""
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of both; `closure` is not supported."""
        assert closure is None
        for part in self._parts:
            part.step()


def make_optimizer(model: torch.nn.Module, config: LoopConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, 2019), fused where it exists, or Muon with it; only matrices of layers decay.

    Raises InputError for Muon with low-rank updates, or in a torch that lacks it.
    """
    decays: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    embeddings = {id(part.weight) for part in model.modules() if isinstance(part, torch.nn.Embedding)}
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decays if parameter.ndim >= 2 and id(parameter) not in embeddings else rest).append(parameter)
    by_muon = _for_muon(model) if config.optimizer == "muon" else []
    chosen = {id(parameter) for parameter in by_muon}
    adamw = _adamw([p for p in decays if id(p) not in chosen], rest, config, device)
    if not by_muon:
        return adamw
    muon = torch.optim.Muon(
        by_muon,
        lr=config.learning_rate or 0.0,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return MuonAndAdamW(muon, adamw)


def _adamw(
    decays: list[torch.nn.Parameter], rest: list[torch.nn.Parameter], config: LoopConfig, device: torch.device
) -> torch.optim.AdamW:
    groups = [{"params": decays, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate or 0.0,  # set anew at every step
        betas=(config.beta1, config.beta2),
        fused=device.type in ("cpu", "cuda"),
    )


def _for_muon(model: Any) -> list[torch.nn.Parameter]:
    """The matrices of linear layers between embeddings and output layer."""
    if not hasattr(torch.optim, "Muon"):
        raise InputError(f"train.optimizer: muon needs torch 2.9 or newer, found {torch.__version__}; take adamw")
    outer = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer}
    layers: list[Any] = [part.weight for part in model.modules() if isinstance(part, torch.nn.Linear | Conv1D)]
    found: list[torch.nn.Parameter] = [weight for weight in layers if weight.requires_grad and id(weight) not in outer]
    if not found or isinstance(model, BigramLMHeadModel):
        raise InputError("train.optimizer: this model has no matrices between its embeddings and logits; take adamw")
    return found
