"""How the layers of a model compute: attention of packed rows, dropout, LoRA, casts that are kept, compiled blocks."""
