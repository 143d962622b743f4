"""How much memory a run takes, on the device or of the process."""

import ctypes
import gc
from pathlib import Path

import torch
from torch import nn

STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PEAK = "5"  # written to clear_refs, it makes the peak resident set what is resident now (proc(5))


class PeakMemory:
    """The most bytes in use between two looks, with the model's own.

    kind: "cuda": what torch has allocated on the device. "process": growth of the resident set since the start, on
    top of the model's bytes, so that interpreter, libraries and data, and whatever was there before, do not count;
    Linux alone tells and resets the peak. None: no such figure on this machine.
    """

    def __init__(self, model: nn.Module, device: torch.device):
        self.kind: str | None = "cuda" if device.type == "cuda" else None
        self._below = 0
        if device.type == "cpu" and _resident("VmHWM") and _reset():
            self.kind = "process"
            _give_back()
            self._below = _resident("VmRSS") - model_bytes(model)
        self.look()

    def look(self) -> int | None:
        """The peak since the last look."""
        if self.kind is None:
            return None
        if self.kind == "cuda":
            peak = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            return peak
        peak = _resident("VmHWM") - self._below
        _give_back()
        _reset()
        return peak


def model_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, shared ones once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def available_bytes() -> int | None:
    """What the machine can still give without swapping; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _give_back() -> None:
    """Return what was freed to the system: an allocator keeps it, so that an earlier run would hide what this takes."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)


def _resident(name: str) -> int:
    """A figure of the process in bytes, 0 where there is none."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def _reset() -> bool:
    try:
        REFERENCES.write_text(PEAK)
    except OSError:
        return False
    return True
