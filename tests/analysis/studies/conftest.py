"""The tiny models and the task of the training tests."""

from tests.training.conftest import one_thread, tiny, tiny_lm

__all__ = ["one_thread", "tiny", "tiny_lm"]
