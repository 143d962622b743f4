"""`python -m attnlens`, which torchrun can start in several processes."""

import os

if __name__ == "__main__":
    # Read once, when torch is loaded: its processes warn that they look for parameters without a gradient in vain.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from attnlens.cli import main

    main()
