"""How scores are made: one evaluator for tuned and prompted models, prompts, baselines, metrics."""
