"""Procedural rows and documents that ship with the package, so that everything runs offline."""
