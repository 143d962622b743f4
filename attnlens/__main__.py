"""`python -m attnlens`, which torchrun can start in several processes."""

from attnlens.cli import main

if __name__ == "__main__":
    main()
