"""The heads that predict numbers by name, and what is said of those that do not."""

from __future__ import annotations

from dataclasses import replace

from featcache.cache.view_names import LEXICAL, split_view
from featcache.errors import UsageError
from featcache.fingerprint import REGRESSION
from featcache.heads.numbers.ridge import fit_ridge
from featcache.heads.registry import KINDS, HeadKind, fit_linear
from featcache.settings import HeadSettings, Settings

NUMBER_KINDS = {
    "linear": HeadKind(
        fit_linear,
        tuple(name for name in KINDS["linear"].settings if name not in ("label_smoothing", "class_weight")),
        on_device=True,
    ),
    "ridge": HeadKind(fit_ridge, ("alpha", "penalty", "folds", "weight_column", "interval")),
}


def kinds_for(task: str) -> dict[str, HeadKind]:
    """The heads for a task, by name."""
    return NUMBER_KINDS if task == REGRESSION else KINDS


def check_number_head(
    settings: Settings, kind: str, view: str | None, rows_per_class: int | None = None
) -> None:
    """Refuse a head that only classifies, and settings that are about classes.

    Args:
        view: as it was asked for.

    Raises:
        UsageError
    """
    asked, head = split_view(view or ""), settings.head
    if kind not in NUMBER_KINDS or LEXICAL in asked:
        what = f"the {kind} head predicts" if kind not in NUMBER_KINDS else "heads of words (lexical) predict"
        raise UsageError(
            f"{what} classes, and these labels are numbers",
            hint=f"heads that predict numbers: {', '.join(NUMBER_KINDS)}, on cached views",
        )
    about_classes = {
        "--class-weight": head.class_weight != "none",
        "--costs": head.costs is not None,
        "--label-smoothing": head.label_smoothing > 0,
        settings.abstention.flag: settings.abstention.asked,
        "--rows-per-class": rows_per_class is not None,
    }
    instead = {
        "--class-weight": "; rows are weighed by --weight-column",
        settings.abstention.flag: "; how sure a number is, its interval says: --interval",
    }
    if given := [flag for flag, asked in about_classes.items() if asked]:
        raise UsageError(
            f"{given[0]} is about classes, and these labels are numbers",
            hint=f"leave it away{instead.get(given[0], '')}",
        )


def number_settings(head: HeadSettings) -> HeadSettings:
    """The settings of a head as its run records them: where alpha comes from, and alpha if it is fixed."""
    fixed = head.alpha_choice == "fixed"
    return replace(head, penalty=head.alpha_choice, alpha=head.fixed_alpha if fixed else head.alpha)


def refuse_numbers(task: str | None, command: str) -> None:
    """Refuse labels that are numbers for what is done with classes alone.

    Args:
        task: of the settings or of the labels.
        command: e.g. `sweep`.

    Raises:
        UsageError
    """
    if task == REGRESSION:
        raise UsageError(
            f"featcache {command} is about classes, and these labels are numbers",
            hint="for numbers there are extract, run, train-head, compare, predict, serve, report and export",
        )
