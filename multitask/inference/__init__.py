"""How a model is queried: likelihoods of given text, generated text, perplexity."""
