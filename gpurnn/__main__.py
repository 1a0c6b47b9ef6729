"""``python -m gpurnn`` is the ``gpurnn`` command."""

from .cli import main

if __name__ == "__main__":
    main()
