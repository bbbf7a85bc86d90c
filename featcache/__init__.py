"""featcache: run a frozen Transformer once, cache its features, train heads in seconds.

To begin: `featcache.run(reviews, text="评论", label="类别")`. Each public name is imported when it is first
used, so that `import featcache` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from featcache.backbone.encoder import Encoder
    from featcache.cache.catalog import CacheFile, Features
    from featcache.data.split import Split, load_splits
    from featcache.errors import FeatcacheError
    from featcache.extraction.api import extract_splits, find_features
    from featcache.finetuning.finetune import finetune
    from featcache.finetuning.recipe import Recipe
    from featcache.heads.head import Head, load_head
    from featcache.importing.api import import_vectors
    from featcache.inspection.cached import inspect
    from featcache.prediction.predictor import Prediction, Predictor
    from featcache.prediction.sklearn_api import FeatureExtractor, LinearHead
    from featcache.runs.compare import compare_runs
    from featcache.runs.learning_curve import learning_curve
    from featcache.runs.run import Run, list_runs, load_run
    from featcache.runs.train import train_head
    from featcache.runs.train_workers import train_with_workers
    from featcache.settings import Settings, load_settings
    from featcache.workflow.progress_bars import ProgressBars
    from featcache.workflow.run import AllRuns, run

_HOME = {
    "AllRuns": "workflow.run",
    "CacheFile": "cache.catalog",
    "Encoder": "backbone.encoder",
    "FeatcacheError": "errors",
    "FeatureExtractor": "prediction.sklearn_api",
    "Features": "cache.catalog",
    "Head": "heads.head",
    "LinearHead": "prediction.sklearn_api",
    "Prediction": "prediction.predictor",
    "Predictor": "prediction.predictor",
    "ProgressBars": "workflow.progress_bars",
    "Recipe": "finetuning.recipe",
    "Run": "runs.run",
    "Settings": "settings",
    "Split": "data.split",
    "compare_runs": "runs.compare",
    "extract_splits": "extraction.api",
    "find_features": "extraction.api",
    "finetune": "finetuning.finetune",
    "import_vectors": "importing.api",
    "inspect": "inspection.cached",
    "learning_curve": "runs.learning_curve",
    "list_runs": "runs.run",
    "load_head": "heads.head",
    "load_run": "runs.run",
    "load_settings": "settings",
    "load_splits": "data.split",
    "run": "workflow.run",
    "train_head": "runs.train",
    "train_with_workers": "runs.train_workers",
}

__all__ = [
    "AllRuns",
    "CacheFile",
    "Encoder",
    "FeatcacheError",
    "FeatureExtractor",
    "Features",
    "Head",
    "LinearHead",
    "Prediction",
    "Predictor",
    "ProgressBars",
    "Recipe",
    "Run",
    "Settings",
    "Split",
    "compare_runs",
    "extract_splits",
    "find_features",
    "finetune",
    "import_vectors",
    "inspect",
    "learning_curve",
    "list_runs",
    "load_head",
    "load_run",
    "load_settings",
    "load_splits",
    "run",
    "train_head",
    "train_with_workers",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("featcache")
    if name not in _HOME:
        raise AttributeError(f"module 'featcache' has no attribute {name!r}")
    return getattr(import_module(f"featcache.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
