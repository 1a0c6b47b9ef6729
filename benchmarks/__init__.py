"""How fast gpurnn is beside others, how much memory it takes, and whether it learns as they do; see README.md."""
