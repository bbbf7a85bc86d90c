"""The words of the page of `featcache label`, and the sentences that it shares with the terminal.

`page/label.js` says `t("...")` with the English words, `page/index.html` has them as `data-word`. Sentences
are made here, in the language that is spoken.
"""

from __future__ import annotations

from featcache.labelling.encoding import EncodingState
from featcache.labelling.estimate import AccuracyEstimate, MoreLabels
from featcache.labelling.session import LabelSession
from featcache.system.units import size_text
from featcache.translation.language import gettext as _
from featcache.translation.language import ngettext, noted, paragraph
from featcache.translation.sentences import translated, translated_lines

HARDLY = 0.01  # accuracy: a gain that is below it with its interval is not worth the labels
WORDS = (
    noted("Text to label"),
    noted("Labels"),
    noted("Other answers"),
    noted("Confirm many"),
    noted("The head is sure of these. Untick what is wrong; the file marks the others as confirmed in bulk."),
    noted("Confirm these"),
    noted("Close"),
    noted("Progress"),
    noted("Accuracy on texts drawn at random, by the number of labels that the head knew"),
    noted("labels of the head"),
    noted("Accuracy"),
    noted("95 % interval"),
    noted("Undo"),
    noted("Skip"),
    noted("Not sure"),
    noted("Label by name"),
    noted("Add a label"),
    noted("Note"),
    noted("What the head thinks"),
    noted("The label, or how it begins"),
    noted("New label"),
    noted("Note about this text"),
    noted("{count} labels begin with {name}."),
    noted("Done"),
    noted("Enter"),
    noted("Every text has an answer."),
    noted("your note: {note}"),
    noted("The server cannot be reached. Every answer before it is kept; start it again to go on."),
    noted("No guess: this text is for the estimate, or the head knows too little."),
    noted("The head is not sure enough of any text yet."),
    noted("{low} to {high}"),
)


def about_session(session: LabelSession) -> str:
    """Who labels into which file, and how texts are chosen."""
    strategy = [] if session.only_first else [_("strategy {name}", name=session.strategy)]
    return " · ".join([session.by, session.answers.path.name, *strategy])


def counts_sentence(session: LabelSession) -> str:
    """How many texts have labels."""
    counted, total = session.counted, len(session.texts.texts)
    said = [
        _(
            "{labelled:,} of {total:,} texts have labels; you answered {mine:,}.",
            labelled=len(counted.labels), total=total, mine=len(counted.touched.get(session.by, ())),
        )
    ]  # fmt: skip
    if counted.conflicts:
        one = "{count:,} text has unlike labels, and counts nowhere."
        many = "{count:,} texts have unlike labels, and count nowhere."
        said.append(ngettext(one, many, len(counted.conflicts)))
    if counted.unknown:
        one = "{count:,} answer is about a text that is not in this file."
        many = "{count:,} answers are about texts that are not in this file."
        said.append(ngettext(one, many, counted.unknown))
    return paragraph(said)


def accuracy_sentence(session: LabelSession, estimate: AccuracyEstimate | None) -> str:
    """The accuracy with its interval, or what it waits for."""
    if estimate is None:
        waiting = _("No accuracy yet: the head needs two labels, and texts drawn at random to be scored on.")
        return "" if session.only_first else waiting
    template = (
        _("All labels right: {share:.1%} (95 %: {low:.1%} to {high:.1%}), on {rows:,} texts drawn at random.")
        if session.multi_label
        else _("Accuracy {share:.1%} (95 %: {low:.1%} to {high:.1%}), on {rows:,} texts drawn at random.")
    )
    return template.format(share=estimate.accuracy, low=estimate.low, high=estimate.high, rows=estimate.rows)


def more_sentence(more: MoreLabels | None) -> str:
    """What more labels would bring, and whether that is a reason to stop."""
    if more is None:
        return ""
    said = _(
        "{labels} more labels: about {gain:.1f} points more (95 %: {low:.1f} to {high:.1f}).",
        labels=more.labels, gain=100 * more.gain, low=100 * more.low, high=100 * more.high,
    )  # fmt: skip
    return paragraph([said, _("You can stop: that is less than a point.")]) if more.high < HARDLY else said


def encoding_sentences(state: EncodingState) -> list[str]:
    """What was told about the model and the texts, and how far they are encoded."""
    said = [translated(one) for one in state.notes]
    if state.problem:
        why = translated_lines(state.problem)
        said.append(_("The texts could not be encoded, so they are drawn at random: {why}", why=why))
    elif not state.ready:
        said.append(paragraph([_stage(state), _("Until all are encoded, texts are drawn at random.")]))
    return said


def _stage(state: EncodingState) -> str:
    if state.stage == "encode":
        return _("Encoding with {model}: {done:,} of {total:,} texts.", **vars(state))
    if state.stage == "download":
        done = size_text(state.done)
        return _("Downloading {model}: {done}.", model=state.model, done=done)
    if state.stage == "load":
        return _("Loading the model {model}.", model=state.model)
    return _("Looking for the model {model}.", model=state.model)
