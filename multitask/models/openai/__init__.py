"""OpenAI's GPT-2 checkpoints, read without TensorFlow."""
