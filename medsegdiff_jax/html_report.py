"""`report.html`: what an evaluation found, as one file that needs no other file and no network.

The numbers are those of metrics.json and per_case.csv, rounded for the eye; `data-value` of a cell
holds them in full. Text from data is escaped, pictures are data URIs, and the template's few lines
of JavaScript sort and filter the table of cases. The template is `report_template.html`.
"""

import base64
import dataclasses
import datetime
import html
import math
import numbers
import os
import string
import struct
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from medsegdiff_jax import atomic

UNDEFINED = "\N{EN DASH}"
_LONGEST_LIST = 20  # entries; longer lists are left to metrics.json
_NAMES = {
    "dice": "Dice",
    "iou": "IoU",
    "hd95": "HD95",
    "assd": "ASSD",
    "nsd": "NSD",
    "nsd_tolerance": "NSD tolerance",
    "checkpoint_sha256": "checkpoint SHA-256",
    "ged": "GED",
    "matched_iou": "matched IoU",
    "max_dice": "max Dice",
    "sample_dice": "sample Dice",
    "interval_iou": "interval IoU",
    "ece": "ECE",
    "brier": "Brier",
    "aurc": "AURC",
    "spearman": "Spearman",
}
_FOLDERS = "Cases of each folder: mean Dice over classes and cases, and its 95% interval."
_CAPTION = "Mean over cases and its 95% interval; standard deviations are in metrics.json."


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture in the report.

    Attributes:
      title: its heading, or the first words below it.
      png: a PNG file, or its bytes.
      alt: what it shows, for those who do not see it.
      caption: more words below it.
    """

    title: str
    png: bytes | str | os.PathLike
    alt: str
    caption: str = ""


def write(
    path: str | os.PathLike,
    summary: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    plots: Sequence[Figure],
    worst: Sequence[Figure],
    legend: Mapping[str, Sequence[float]],
) -> None:
    """Writes the report, all or nothing.

    Args:
      path: file to write.
      summary: the content of metrics.json: "version", "run", "spacing", "nsd_tolerance",
        "empty_mask_policy", "conventions", "references_without_prediction", "groups" (how many
        groups of cases, or None), "classes", if there are several "folders" and, if anything of it
        was saved, "uncertainty".
      rows: those of per_case.csv, all with the same keys, "case" and "class" first.
      plots: a section each.
      worst: pictures of the worst cases, worst first; no section without any.
      legend: what the lines in these mean -> RGB in [0, 255].

    Raises:
      OSError: a picture cannot be read or the report cannot be written.
    """
    sections = [
        ("Summary", _overview(summary, rows)),
        ("Scores", _scores(summary["classes"], _CAPTION)),
        ("Folders", _scores(summary.get("folders", {}), _FOLDERS, "predictions")),
        *((plot.title, _figure(plot)) for plot in plots),
        ("Uncertainty", _uncertainty(summary["uncertainty"]) if "uncertainty" in summary else ""),
        ("Worst cases", _gallery(worst, legend)),
        ("All cases", _cases(rows)),
        ("Conventions", _definitions(summary["conventions"])),
    ]
    sections = [(title, body) for title, body in sections if body]
    template = resources.files(__package__).joinpath("report_template.html").read_text("utf-8")
    text = string.Template(template).substitute(
        title=_text(f"Evaluation of {_title(summary['run']['predictions'])}"),
        navigation="".join(
            f'<li><a href="#section-{number}">{_text(title)}</a></li>'
            for number, (title, _) in enumerate(sections)
        ),
        sections="\n".join(
            f'<section aria-labelledby="section-{number}">\n'
            f'<h2 id="section-{number}">{_text(title)}</h2>\n{body}\n</section>'
            for number, (title, body) in enumerate(sections)
        ),
    )
    atomic.write_text(path, text)


def _title(predictions: Sequence[str]) -> str:
    first = Path(predictions[0])
    # Folders of folds may be called 0, 1, 2.
    return first.name if len(predictions) == 1 else f"{len(predictions)} folders, {first} first"


def _overview(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """What was scored, and how."""
    policy = summary["empty_mask_policy"]
    unscored = summary["references_without_prediction"]
    cases = len({row["case"] for row in rows})
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    facts = {
        **summary["run"],
        "cases": f"{cases} in {summary['groups']} groups" if summary["groups"] else cases,
        "classes": list(dict.fromkeys(row["class"] for row in rows)),
        "references without a prediction": unscored or "none",
        "spacing": summary["spacing"],
        "nsd_tolerance": summary["nsd_tolerance"],
        "empty masks": f"{policy}: {summary['conventions'][f'empty_{policy}']}",
        "written": f"{today} by medsegdiff_jax {summary['version']}",
    }
    return _definitions(facts)


def _scores(rows: Mapping[str, Mapping[str, Any]], caption: str, what: str = "class") -> str:
    """A row per class, a column per metric, of Summaries as dictionaries; empty without any."""
    if not rows:
        return ""
    metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row))
    digits = {metric: _digits([row[metric]["mean"] for row in rows.values()]) for metric in metrics}
    lines = []
    for name, row in rows.items():
        cells = "".join(_summary(row[metric], digits[metric]) for metric in metrics)
        lines.append(f"<tr>{_row_name(name)}{cells}</tr>")
    return _table(caption, _head((what,), [_name(metric) for metric in metrics]), lines)


def _summary(entry: Mapping[str, Any], digits: int) -> str:
    """A cell with a mean, its interval, and of how many cases it is, if some are left out."""
    below = []
    if _defined(entry["low"]):
        below.append(f"{_format(entry['low'], digits)} to {_format(entry['high'], digits)}")
    if entry["n_valid"] < entry["n_cases"]:
        below.append(f"{entry['n_valid']} of {entry['n_cases']} cases")
    return _number(entry["mean"], digits, below)


def _nested(classes: Mapping[str, Mapping[str, Any]], kind: str, caption: str) -> str:
    """A row per class and entry with the numbers of each entry; empty without any."""
    entries = [(name, key, one) for name, row in classes.items() for key, one in row.items()]
    if not entries:
        return ""
    columns = [key for key, value in entries[0][2].items() if not isinstance(value, Mapping)]
    lines = [
        f"<tr>{_row_name(name)}<td>{_text(_name(key))}</td>"
        + "".join(_number(one[column], 4) for column in columns)
        + "</tr>"
        for name, key, one in entries
    ]
    return _table(caption, _head(("class", kind), [_name(c) for c in columns]), lines)


def _head(words: Sequence[str], numbers: Sequence[str]) -> str:
    """Headings of columns of words, then of numbers."""
    return "".join(
        f'<th scope="col"{kind}>{_text(title)}</th>'
        for kind, titles in (("", words), (' class="number"', numbers))
        for title in titles
    )


def _uncertainty(found: Mapping[str, Any]) -> str:
    """What members, probabilities and raters say, as far as there are any."""
    tables = (
        _scores(
            found["classes"],
            "Samples against every rater, and against each other: mean and 95% interval.",
        ),
        _scores(
            found["rater_dice"],
            "Dice of each rater against the majority of all: mean and 95% interval.",
        ),
        _nested(found["calibration"], "region", "Probabilities against the raters."),
        _nested(found["ranking"], "score", "How well a score of doubt ranks the errors of cases."),
    )
    return "\n".join(table for table in tables if table)


def _cases(rows: Sequence[Mapping[str, Any]]) -> str:
    """The sortable table of all rows."""
    digits = {
        column: _digits([row[column] for row in rows])
        for column in rows[0]
        if not any(isinstance(row[column], str) for row in rows)
    }
    head = "".join(
        f'<th scope="col"{_kind(column in digits)}><button type="button">{_text(_name(column))}'
        "</button></th>"
        for column in rows[0]
    )
    lines = []
    for row in rows:
        case, *cells = (
            _number(value, digits[column]) if column in digits else f"<td>{_text(value)}</td>"
            for column, value in row.items()
        )
        lines.append(f"<tr>{_row_name(row['case'])}{''.join(cells)}</tr>")
    controls = (
        '<div class="filter" hidden><label for="filter">Show rows with</label>'
        '<input id="filter" type="search" autocomplete="off">'
        '<output id="shown" for="filter"></output></div>'
    )
    caption = f"A row per case and class. A heading sorts; {UNDEFINED} is an undefined value."
    return controls + _table(caption, head, lines, 'id="cases"')


def _table(caption: str, head: str, lines: Sequence[str], attributes: str = "") -> str:
    """A table in a box that scrolls, which the keyboard can reach."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(caption)}">'
        f"<table {attributes}><caption>{_text(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{chr(10).join(lines)}\n</tbody></table></div>"
    )


def _gallery(figures: Sequence[Figure], legend: Mapping[str, Sequence[float]]) -> str:
    if not figures:
        return ""
    lines = "".join(
        f'<li><span style="background:rgb({",".join(str(round(part)) for part in color)})"></span>'
        f"{_text(name)}</li>"
        for name, color in legend.items()
    )
    pictures = "\n".join(_figure(figure) for figure in figures)
    text = "Cases in the order of their lowest Dice; each is shown with the class that has it."
    return f'<p>{text}</p><ul class="legend">{lines}</ul><div class="gallery">{pictures}</div>'


def _figure(figure: Figure) -> str:
    png = figure.png if isinstance(figure.png, bytes) else Path(figure.png).read_bytes()
    width, height = struct.unpack(">II", png[16:24])  # of the IHDR chunk, which comes first
    caption = f"<strong>{_text(figure.title)}</strong> {_text(figure.caption)}"
    return (
        f'<figure><img src="data:image/png;base64,{base64.b64encode(png).decode()}" '
        f'width="{width}" height="{height}" alt="{_text(figure.alt)}">'
        + (f"<figcaption>{caption}</figcaption></figure>" if figure.caption else "</figure>")
    )


def _definitions(entries: Mapping[str, Any]) -> str:
    pairs = (
        f"<dt>{_text(_name(name))}</dt><dd>{_text(_words(value))}</dd>"
        for name, value in entries.items()
    )
    return f"<dl>{''.join(pairs)}</dl>"


def _words(value: Any) -> str:
    """A value as a line of text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) > _LONGEST_LIST:
            return f"{len(value)} entries, see metrics.json"
        return ", ".join(_words(part) for part in value)
    if isinstance(value, float) or value is None:
        return f"{value:g}" if _defined(value) else UNDEFINED
    return str(value)


def _row_name(name: str) -> str:
    return f'<th scope="row"><span>{_text(name)}</span></th>'


def _number(value: Any, digits: int = 0, below: Sequence[str] = ()) -> str:
    """A cell with a number, which `data-value` holds in full (empty if it is undefined).

    Lines `below` it are small.
    """
    exact = float(value) if _defined(value) else ""
    small = "".join(f"<br><small>{_text(line)}</small>" for line in below)
    return f'<td class="number" data-value="{exact}">{_text(_format(value, digits))}{small}</td>'


def _format(value: Any, digits: int) -> str:
    if not _defined(value):
        return UNDEFINED
    return f"{value:,}" if isinstance(value, numbers.Integral) else f"{value:.{digits}f}"


def _digits(values: Sequence[Any]) -> int:
    """Decimals of numbers that are compared: 4 for fractions, else 2."""
    return 4 if all(abs(value) <= 1 for value in values if _defined(value)) else 2


def _defined(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _kind(number: bool) -> str:
    return ' class="number"' if number else ""


def _name(key: str) -> str:
    return _NAMES.get(key, str(key).replace("_", " "))


def _text(value: Any) -> str:
    """Escaped for text and for quoted attributes."""
    return html.escape(str(value), quote=True)
