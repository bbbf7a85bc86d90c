"""scikit-learn estimators: texts to cached features, and features to labels.

Both follow scikit-learn's rules, so that its pipelines, searches and cross-validation take them:

    make_pipeline(FeatureExtractor("bert-base-chinese"), LinearHead()).fit(texts, labels)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from featcache.backbone.endpoint.model import AnyModel, follow_any
from featcache.backbone.model_files.find import ModelFiles
from featcache.errors import BackboneError, HeadError, SourceError, UsageError
from featcache.extraction.text_features import model_files, text_features, with_dtype
from featcache.heads.features import LabelledFeatures, Standard
from featcache.heads.fit import Member
from featcache.heads.probabilities import softmax
from featcache.heads.scorers import Linear
from featcache.settings import HeadSettings, Settings, build_settings
from featcache.system.text import check_text

if TYPE_CHECKING:
    from featcache.backbone.encoder import Encoder

PREDICT_ROWS = 65536  # rows of one product, so that a memory-mapped matrix may be larger than memory


class CannotFit(HeadError, ValueError):
    """Data that no head can be fitted to; also a ValueError, as scikit-learn requires."""


# The encoder that each extractor has loaded, with the settings it was loaded for. It is no attribute of the
# extractor, because then it would be pickled and `transform` would change the extractor.
_loaded: WeakKeyDictionary[FeatureExtractor, tuple[Any, Encoder]] = WeakKeyDictionary()


class FeatureExtractor(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Texts `[N]` to features float32 `[N, D]` of a frozen backbone; each text is encoded only once.

    Features are taken from any cache file of the same encoder, also from those of `featcache extract`.
    The backbone is only loaded when some are missing; these are then kept in `<cache_dir>/texts/` for the
    next fold, clone or process. To serve single texts, use `Predictor`: here each call with new texts adds
    a cache file.

    Args:
        model: hub id or local folder of the backbone.
        revision: hub revision of the model: branch, tag or commit.
        view: layer and pooling, e.g. `last/cls`, `last/mean`, `-4/mean`; `last/auto` pools as the model's
            sentence-transformers settings say, and as `cls` where it has none.
        prompt: put before every text, e.g. `query: ` for E5 models; `auto`: with an `auto` view the default
            prompt of those settings, otherwise none.
        prompt_name: the prompt of this name in those settings.
        max_length: longest text in tokens; the model's own limit if that is lower. None: with an `auto` view
            as those settings say, otherwise 512.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        dtype: compute type; `auto` is bfloat16 where the processor has it natively, else float32.
        storage: type of the cached features, `float16` or `float32`.
        batch_tokens: tokens in one packed batch; by default chosen by device.
        cache_dir: folder of the feature caches.
        trust_remote_code: let the model's own Python code run.
        hub: where a model that is no folder comes from, `huggingface` or `modelscope`.
        adapter: folder of a PEFT LoRA adapter, which is merged into the model's weights.

    Attributes:
        n_features_out_: D, if the model's config has it.
        dtype_: the compute type; `auto` is resolved once, when fitted, so that a pickled pipeline makes
            the same features on another machine.
    """

    def __init__(  # noqa: PLR0913  (scikit-learn sets the parameters of an estimator one by one)
        self,
        model: str = "bert-base-chinese",
        *,
        revision: str | None = None,
        view: str = "last/auto",
        prompt: str = "auto",
        prompt_name: str | None = None,
        max_length: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        storage: str = "float16",
        batch_tokens: int | None = None,
        cache_dir: str | os.PathLike[str] = "cache",
        trust_remote_code: bool = False,
        hub: str = "huggingface",
        adapter: str | None = None,
    ) -> None:
        self.model = model
        self.revision = revision
        self.view = view
        self.prompt = prompt
        self.prompt_name = prompt_name
        self.max_length = max_length
        self.device = device
        self.dtype = dtype
        self.storage = storage
        self.batch_tokens = batch_tokens
        self.cache_dir = cache_dir
        self.trust_remote_code = trust_remote_code
        self.hub = hub
        self.adapter = adapter

    def fit(self, X: Iterable[str], y: Any = None) -> Self:
        """Check settings, texts and the model's files; the model is not loaded and nothing is learnt.

        Raises:
            SourceError: `X` is not a list of texts, or one of them is empty; names its place.
            UsageError: a setting is not valid, or the device does not exist.
            BackboneError: the model does not exist.
        """
        _texts(X)
        settings = self._settings(self.dtype)
        self.dtype_ = settings.backbone.dtype
        width = _width(settings, model_files(settings.backbone))
        if width is not None:
            self.n_features_out_ = width
        return self

    def transform(self, X: Iterable[str]) -> np.ndarray:
        """The features of N texts, float32 `[N, D]`, in order; `fit` need not be called before.

        Args:
            X: list, tuple, one-dimensional array or pandas Series of str.

        Raises:
            SourceError: `X` is not a list of texts, or one of them is empty; names its place.
            BackboneError, UsageError: the model cannot be loaded, or does not have the view or the length.
            CacheError: the cache cannot be read or written.
        """
        texts = _texts(X)
        fitted = getattr(self, "dtype_", None) if self.dtype == "auto" else self.dtype
        settings = self._settings(fitted or self.dtype)
        if texts:
            return text_features(texts, settings, self._encoder)
        files = model_files(settings.backbone)
        width = _width(settings, files)
        if width is None:
            raise BackboneError(
                f"the width of {files.name} is not known before a text is encoded",
                hint="call fit or transform first",
            )
        return np.empty((0, width), np.float32)

    @property
    def _n_features_out(self) -> int:
        return self.n_features_out_

    def _settings(self, dtype: str) -> Settings:
        """The settings, with `dtype` resolved on this machine where it is `auto`."""
        values = {**self.get_params(), "dtype": dtype, "cache_dir": os.fspath(self.cache_dir)}
        view = values.pop("view")
        if not isinstance(view, str):
            raise UsageError(f"view wants a text such as 'last/mean', got {view!r}")
        settings = build_settings({**values, "views": (view,)})
        return replace(settings, backbone=with_dtype(settings.backbone))

    def _encoder(self, settings: Settings, files: ModelFiles) -> Encoder:
        """The encoder, loaded once for the same settings and files."""
        wanted = (settings.backbone, settings.features, files)
        if self not in _loaded or _loaded[self][0] != wanted:
            from featcache.backbone.encoder import Encoder

            _loaded.pop(self, None)  # its memory is needed for the next one
            _loaded[self] = (wanted, Encoder.load(settings.backbone, settings.features, files))
        return _loaded[self][1]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.requires_fit = False
        return tags


def _texts(X: Any) -> list[str]:
    """`X` as a list of checked texts.

    Raises:
        SourceError: `X` is one text, can be read only once, has no order or more than one dimension, or
            a value is not a usable text.
    """
    shape = getattr(X, "shape", None)
    if isinstance(X, (str, bytes)):
        raise SourceError("wants a list of texts, got a single one", hint="wrap it in a list: [text]")
    if not isinstance(X, Sequence) if shape is None else len(shape) != 1:
        got = type(X).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")
        raise SourceError(
            f"wants a one-dimensional list, array or Series of texts, got {got}",
            hint="of a DataFrame, take one column: frame['text']",
        )
    texts = X.tolist() if isinstance(X, np.ndarray) else list(X)
    for number, text in enumerate(texts, start=1):
        check_text(text, f"text {number}")
    return texts


def _width(settings: Settings, files: AnyModel) -> int | None:
    """Numbers in the vector of a text; None if the model's config does not say it."""
    return files.width_of(follow_any(settings.features, files).features.views)


class LinearHead(ClassifierMixin, BaseEstimator):
    """Features `[N, D]` to one of C labels: softmax regression on standardised features.

    Mean and scale are folded into the weights, so that `predict` takes features as they are.

    Args:
        solver: `adamw` (Loshchilov & Hutter, arXiv:1711.05101) for a number of epochs, or `exact`,
            L2-penalised logistic regression to convergence.
        epochs, lr, weight_decay, batch_size: of `adamw`; the weights after the last epoch are taken.
        C: inverse penalty of `exact`.
        class_weight: None, `balanced`, or a weight by label; each row's loss is multiplied with it.
        random_state: order of the rows in each epoch of `adamw`, which starts from zero.

    Attributes:
        classes_: the C labels, sorted: the order of the columns.
        coef_: float64 `[C, D]`, `[1, D]` for two labels: those of the second against the first.
        intercept_: float64 `[C]` or `[1]`.
        n_iter_: epochs, or iterations to convergence.
        n_features_in_: D.
    """

    def __init__(
        self,
        solver: str = "adamw",
        *,
        epochs: int = 100,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        batch_size: int = 32,
        C: float = 0.1,
        class_weight: str | Mapping[Any, float] | None = None,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.solver = solver
        self.epochs = epochs
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.C = C
        self.class_weight = class_weight
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to features float `[N, D]` and labels `[N]` of any kind that can be sorted.

        Raises:
            ValueError: NaN, infinite or sparse features, unequal lengths, labels of a regression;
                `CannotFit` for a single class.
            UsageError: a parameter out of its range.
            HeadError: a loss that diverges.
        """
        settings = self._settings()
        X, y = validate_data(self, X, y, dtype=(np.float32, np.float64))
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise CannotFit(f"all labels are of one class, {self.classes_[0]}; there is nothing to learn")
        seed = _seed(self.random_state)
        weights = (
            None
            if self.class_weight is None
            else compute_class_weight(self.class_weight, classes=self.classes_, y=y)
        )
        solve = self._exact if self.solver == "exact" else self._adamw
        weight, bias, self.n_iter_ = solve(X, labels, weights, settings, seed)
        weight, bias = weight.astype(np.float64), bias.astype(np.float64)
        two = len(self.classes_) == 2
        self.coef_ = weight[1:] - weight[:1] if two else weight
        self.intercept_ = bias[1:] - bias[:1] if two else bias
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """float64 `[N, C]`; `[N]` for two labels, positive for the second."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float32, np.float64), reset=False)
        logits = np.empty((len(X), len(self.intercept_)))
        for start in range(0, len(X), PREDICT_ROWS):
            rows = slice(start, start + PREDICT_ROWS)
            logits[rows] = X[rows].astype(np.float64) @ self.coef_.T + self.intercept_
        return logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """float64 `[N, C]`, columns in the order of `classes_`; rows add up to 1."""
        logits = self.decision_function(X)
        return softmax(np.stack([np.zeros_like(logits), logits], axis=1) if logits.ndim == 1 else logits)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of each row `[N]`."""
        logits = self.decision_function(X)
        labels: np.ndarray = self.classes_[
            (logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(axis=1)
        ]
        return labels

    def _settings(self) -> HeadSettings:
        if self.solver not in ("adamw", "exact"):
            raise UsageError(f"solver {self.solver!r} is neither adamw nor exact")
        names = ("epochs", "lr", "weight_decay", "batch_size", "C")
        return build_settings({name: getattr(self, name) for name in names}).head

    def _adamw(
        self, x: np.ndarray, labels: np.ndarray, weights: np.ndarray | None, settings: HeadSettings, seed: int
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Weights `[C, D]` and bias `[C]` for features as they are, and the number of epochs."""
        from featcache.heads.linear_stack import fit_stack

        by_class = "none" if weights is None else tuple(weights.tolist())
        member = replace(Member.of(settings, "x"), class_weight=by_class)
        # Validation rows only choose the best epoch, but here the last one is taken.
        train, validation = LabelledFeatures(x, labels), LabelledFeatures(x[:1], labels[:1])
        (fit,) = fit_stack({"x": train}, {"x": validation}, len(self.classes_), [member], settings, seed=seed)
        assert isinstance(fit.last, Linear)
        return fit.last.weight, fit.last.bias, len(fit.history)

    def _exact(
        self, x: np.ndarray, labels: np.ndarray, weights: np.ndarray | None, settings: HeadSettings, _: int
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """As `_adamw`, with the number of iterations."""
        from featcache.heads.logistic import exact

        standard = Standard.of(x)
        by_row = None if weights is None else weights[labels]
        found = exact.fit(standard(x), labels, len(self.classes_), settings.fixed_C, sample_weight=by_row)
        return (*standard.fold(found.weight, found.bias), found.iterations)


def _seed(random_state: int | np.random.RandomState | None) -> int:
    if isinstance(random_state, (int, np.integer)):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31))
