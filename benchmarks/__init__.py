"""The speed of gpurnn compared with others, its memory, and whether it learns as they do; see README.md."""
