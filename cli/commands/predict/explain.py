"""`featcache predict --explain`: the words or tokens of a text that decided."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featcache.translation.language import gettext as _
from featcache_cli.console import columns, out, table

if TYPE_CHECKING:
    from featcache.prediction.explain import Explanation
    from featcache.prediction.predictor import Prediction


def show(predictions: list[Prediction], found: list[Explanation]) -> None:
    """Each text with the words for its label in green and those against it in red, and their weights."""
    from rich.text import Text

    console = out()
    for prediction, explanation in zip(predictions, found, strict=True):
        text = Text(prediction.text)
        for begin, end, weight in explanation.spans:
            text.stylize("bold green" if weight > 0 else "red", begin, end)
        for token in explanation.tokens:
            text.stylize("underline", token.begin, token.end)
        console.print(Text.assemble((explanation.label, "bold"), f" {prediction.probability:.4f}  ", text))
        towards = ">" + _("for {label}", label=explanation.label)
        if explanation.tokens:
            looked = table(*columns("token", ">looked at"), towards)
            for token in explanation.tokens:
                looked.add_row(f"{token.token!r}", f"{token.share:.1%}", f"{token.weight:+.2f}")
            console.print(looked)
        if not explanation.ngrams:
            continue
        shown = table(*columns("n-gram"), towards)
        for part in explanation.ngrams:
            shown.add_row(f"{part.ngram!r}", f"{part.weight:+.2f}")
        console.print(shown)
        words = "all words together: {sum:+.2f} to the logit of {label}, over the mean of all labels"
        console.print(_(words, sum=explanation.words, label=explanation.label), style="dim")
