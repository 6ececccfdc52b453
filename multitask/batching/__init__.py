"""Ids to tensors: which row comes next, how examples share a block, how a batch is laid out."""
