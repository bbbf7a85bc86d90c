"""featcache: run a frozen Transformer once, cache its features, train heads in seconds.

The public names; each is imported when it is first used, so that `import featcache` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featcache.config import Settings, load_settings
    from featcache.curve import learning_curve
    from featcache.encode import Encoder
    from featcache.errors import FeatcacheError
    from featcache.estimators import FeatureExtractor, LinearHead
    from featcache.extract import extract_splits, find_features
    from featcache.finetune import finetune
    from featcache.head_workers import train_with_workers
    from featcache.heads import Head, load_head
    from featcache.predictor import Prediction, Predictor
    from featcache.recipe import Recipe
    from featcache.runs import Run, list_runs, load_run
    from featcache.sources import Split, load_splits
    from featcache.store import CacheFile, Features
    from featcache.train import train_head

_HOME = {
    "CacheFile": "store",
    "Encoder": "encode",
    "FeatcacheError": "errors",
    "FeatureExtractor": "estimators",
    "Features": "store",
    "Head": "heads",
    "LinearHead": "estimators",
    "Prediction": "predictor",
    "Predictor": "predictor",
    "Recipe": "recipe",
    "Run": "runs",
    "Settings": "config",
    "Split": "sources",
    "extract_splits": "extract",
    "find_features": "extract",
    "finetune": "finetune",
    "learning_curve": "curve",
    "list_runs": "runs",
    "load_head": "heads",
    "load_run": "runs",
    "load_settings": "config",
    "load_splits": "sources",
    "train_head": "train",
    "train_with_workers": "head_workers",
}

__all__ = [
    "CacheFile",
    "Encoder",
    "FeatcacheError",
    "FeatureExtractor",
    "Features",
    "Head",
    "LinearHead",
    "Prediction",
    "Predictor",
    "Recipe",
    "Run",
    "Settings",
    "Split",
    "extract_splits",
    "find_features",
    "finetune",
    "learning_curve",
    "list_runs",
    "load_head",
    "load_run",
    "load_settings",
    "load_splits",
    "train_head",
    "train_with_workers",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'featcache' has no attribute {name!r}")
    return getattr(import_module(f"featcache.{_HOME[name]}"), name)
