"""The network: building, loading and saving, LoRA, attention, the loss."""
