"""How this process was started: alone, or beside others by torchrun or `accelerate launch`.

`launched()` -> `(1, 2)` in the second of two processes. Nothing here imports torch.
"""

import os

from multitask.errors import InputError

_SHARDED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor or context parallelism",
}
"""What `accelerate launch` sets in the environment."""


def launched() -> tuple[int, int]:
    """The number of this process and how many were started with it, before they are connected; alone (0, 1)."""
    if "LOCAL_RANK" not in os.environ:
        return 0, 1
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def is_main_launched() -> bool:
    """Whether this process shows progress and results, for all that were started with it."""
    return launched()[0] == 0


def require_one_process(command: str) -> None:
    """Raises InputError for a command whose work is not divided: each process would do all of it."""
    if (size := launched()[1]) > 1:
        raise InputError(f"{command} runs in one process, and {size} were started: start it without torchrun")


def require_whole_models(found: str | None = None) -> None:
    """Raises InputError where a model is to be divided among processes; found: what accelerate made of its settings."""
    asked = [name for key, name in _SHARDED.items() if os.environ.get(key, "").lower() in ("1", "true", "yes")]
    if name := next(iter(asked), found):
        raise InputError(
            f"{name} was asked for, and each process trains a whole copy of the model (DDP): start with torchrun or "
            "`accelerate launch --multi_gpu`. A model that does not fit one GPU that way may with --adapter lora and "
            "train.gradient_checkpointing; beyond that, train it with torchtitan or Megatron-LM"
        )
