"""Trained models behind HTTP: routes, shared decoding batches, the playground. Needs the extra `serve`."""
