"""What fine-tuning did to a transformer's attention and layers, and whether the change is real.

Every public name is imported when it is first used, so that `import attnlens` stays cheap.
"""

from importlib import import_module

__version__: str

_HOMES = {
    "AttnlensError": "core.errors",
    "STATISTICS": "core.rows",
    "Checkpoint": "checkpoints.load",
    "load": "checkpoints.load",
    "record": "checkpoints.record",
    "attention_maps": "checkpoints.maps",
    "attention_rollout": "checkpoints.maps",
    "Corpus": "text.corpus",
    "Example": "text.corpus",
    "Span": "text.corpus",
    "read_corpus": "text.corpus",
    "TrainOptions": "training.options",
    "finetune": "training.train",
    "estimate": "training.estimate",
    "save_delta": "training.delta",
    "apply_delta": "training.delta",
    "CompareOptions": "analysis.compare",
    "Comparison": "analysis.results",
    "compare": "analysis.compare",
    "open_comparison": "analysis.results",
    "weight_changes": "analysis.weights",
    "ReportOptions": "show.run",
    "report": "show.report",
    "view": "show.view",
    "run_report": "show.run",
    "StudyOptions": "analysis.studies.run",
    "study": "show.study",
    "forecast": "analysis.studies.forecast",
    "RedrawOptions": "show.redraw",
    "redraw": "show.redraw",
}

__all__ = [*_HOMES]


def __getattr__(name: str):
    """Import the floor that holds `name` when it is first asked for (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version  # it alone takes as long as the rest of this import

        globals()[name] = version("attnlens")
        return globals()[name]
    if name not in _HOMES:
        raise AttributeError(f"module 'attnlens' has no attribute {name!r}")
    value = getattr(import_module(f"attnlens.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
