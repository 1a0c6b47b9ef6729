"""The speed and memory of gpurnn, and how well it learns, compared with other libraries; see README.md."""
