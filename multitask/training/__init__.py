"""How weights change: fine-tuning and pretraining, the one loop, checkpoints, the run folder."""
