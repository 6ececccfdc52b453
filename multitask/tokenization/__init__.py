"""Text to ids: tokenizers, rows to ids, and encoded rows and texts kept on disk."""
