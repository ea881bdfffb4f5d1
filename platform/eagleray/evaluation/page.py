"""A report as one HTML file: no script, no other file, no address; on a phone or a desk, light or dark."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from eagleray.evaluation.classification import Classification
from eagleray.evaluation.regression import Regression
from eagleray.evaluation.report import Report, shown, title

_MAX_ROWS = 200
_CARDS = {
    "classification": ("accuracy", "f1_macro", "log_loss", "roc_auc"),
    "regression": ("mae", "rmse", "r2", "max_error"),
    "language modelling": ("loss", "perplexity", "bits_per_byte", "accuracy"),
}
_STYLE = """\
:root { color-scheme: light dark; --page: #f4f5f7; --card: #fff; --text: #1c2330; --quiet: #5c6675;
  --line: #e1e4ea; --accent: #2f6fb3; --good: #2c7a4b; --bad: #b3402f; --warn: #8a5a00;
  --warn-card: #fff6e0; }
@media (prefers-color-scheme: dark) {
  :root { --page: #101318; --card: #181c23; --text: #e5e9f0; --quiet: #9aa5b5; --line: #2b313c;
    --accent: #7db4ec; --good: #6cc792; --bad: #f0877a; --warn: #f0c36a; --warn-card: #2a2416; }
  img { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; }
}
* { box-sizing: border-box; }
body { margin: 0; padding: 1.2rem 1rem 3rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 68rem; margin: 0 auto; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 .7rem; }
p { margin: .3rem 0; }
.quiet { color: var(--quiet); font-size: .92rem; }
section, .cards div { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
section { padding: 1rem 1.1rem; margin-top: 1rem; overflow-x: auto; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem;
  margin-top: 1rem; }
.cards div { padding: .7rem .9rem; }
.cards b { display: block; font-size: 1.5rem; font-weight: 650; font-variant-numeric: tabular-nums; }
.verdict { border-left: .35rem solid var(--accent); }
.verdict.good { border-left-color: var(--good); } .verdict.good h2 { color: var(--good); }
.verdict.bad { border-left-color: var(--bad); } .verdict.bad h2 { color: var(--bad); }
.verdict h2::first-letter { text-transform: uppercase; }
.warning { background: var(--warn-card); border-color: var(--warn); }
.warning h2 { color: var(--warn); }
ul { margin: .4rem 0; padding-left: 1.2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .32rem .6rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--quiet); font-weight: 600; font-size: .88rem; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal;
  overflow-wrap: anywhere; min-width: 6.5rem; }
tr:last-child td { border-bottom: 0; }
.words td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
.words td:first-child { color: var(--quiet); width: 10rem; }
.pictures { display: grid; gap: 0 1rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.pictures section:last-child:nth-child(odd) { grid-column: 1 / -1; }
img { width: 100%; height: auto; display: block; margin: auto; max-width: 46rem; }
@media (max-width: 32rem) { section { padding: .8rem; } table { font-size: .9rem; }
  th, td { padding: .3rem; } .words td:first-child { width: 6.5rem; } }
footer { margin-top: 1.2rem; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_MOODS = {"good fit": "good", "over-fitting": "bad", "under-fitting": "bad"}


def html(report: Report) -> str:
    """The whole page; the pictures are read from their files and embedded."""
    name = escape(report.name)
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            f"<title>{name}: evaluation</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n<main>",
            *_body(report),
            "</main>\n</body>\n</html>\n",
        ]
    )


def _body(report: Report) -> Iterator[str]:
    yield f"<h1>{escape(report.name)}</h1>"
    yield (
        f'<p class="quiet">{report.metrics.task.capitalize()} on {report.part_name}, '
        f"{report.metrics.num_samples:,} samples · {report.created}</p>"
    )
    yield from _cards(report)
    yield from _verdict(report)
    if report.warnings:
        yield f'<section class="warning"><h2>Warnings</h2>{_list(report.warnings)}</section>'
    yield from _values(report)
    yield '<div class="pictures">'
    yield from (_picture(picture.title, picture.path.read_bytes()) for picture in report.pictures)
    yield "</div>"
    if isinstance(report.metrics, Classification):
        yield from _classes(report.metrics)
        yield from _mistakes(report.metrics)
    elif isinstance(report.metrics, Regression):
        yield from _residuals(report.metrics)
    yield _section("Model", _words(report.model))
    yield _section("Data", _words(report.data))
    yield f'<footer class="quiet">Eagleray, evaluation {escape(report.evaluation_id)}</footer>'


def _cards(report: Report) -> Iterator[str]:
    yield '<div class="cards">'
    for name in _CARDS[report.metrics.task]:
        if name in report.metrics.values:
            value = shown(name, report.metrics.values[name])
            yield f'<div><span class="quiet">{escape(title(name))}</span><b>{value}</b></div>'
    yield "</div>"


def _verdict(report: Report) -> Iterator[str]:
    judgement = report.judgement
    yield f'<section class="verdict {_MOODS.get(judgement.verdict, "")}">'
    yield f"<h2>{escape(judgement.verdict)}</h2><p>{escape(judgement.headline)}</p>"
    yield from (f'<p class="quiet">{escape(reason)}</p>' for reason in judgement.reasons)
    if judgement.advice:
        yield f"<p>What to try:</p>{_list(judgement.advice)}"
    yield "</section>"


def _values(report: Report) -> Iterator[str]:
    train = {} if report.train is None else report.train.values
    header = ["", report.part if report.part != "all" else "all samples"]
    if report.train is not None:
        header.append(f"train ({report.train.num_samples:,})")
    rows = [
        [title(name), shown(name, value)]
        + ([shown(name, train[name]) if name in train else ""] if report.train is not None else [])
        for name, value in report.metrics.values.items()
    ]
    notes = f'<div class="quiet">{_list(report.metrics.notes)}</div>' if report.metrics.notes else ""
    yield _section("Metrics", _table(header, rows) + notes)


def _classes(metrics: Classification) -> Iterator[str]:
    ordered = list(metrics.per_class)
    if len(ordered) > _MAX_ROWS:
        ordered = sorted((scores for scores in ordered if scores.support), key=lambda scores: scores.f1)
    rows = [
        [
            s.label,
            f"{s.precision:.3f}",
            f"{s.recall:.3f}",
            f"{s.f1:.3f}",
            "–" if s.roc_auc is None else f"{s.roc_auc:.3f}",
            f"{s.support:,}",
        ]
        for s in ordered[:_MAX_ROWS]
    ]
    heading = (
        "Classes" if len(rows) == len(metrics.per_class) else f"The {len(rows)} classes with the lowest F1"
    )
    yield _section(heading, _table(["class", "precision", "recall", "F1", "ROC-AUC", "samples"], rows))


def _mistakes(metrics: Classification) -> Iterator[str]:
    if metrics.confusions:
        rows = [
            [c.label, c.taken_for, f"{c.count:,}", f"{100 * c.count / c.support:.1f} %"]
            for c in metrics.confusions[:10]
        ]
        yield _section(
            "Most frequent mistakes", _table(["true", "taken for", "samples", "of its class"], rows)
        )


def _residuals(metrics: Regression) -> Iterator[str]:
    rows = [[f"{100 * float(share):g} %", shown("", value)] for share, value in metrics.quantiles.items()]
    yield _section("Residuals, predicted - true", _table(["so many are lower", "residual"], rows))
    if metrics.per_output:
        outputs = [
            [
                str(s.number),
                shown("mae", s.mae),
                shown("rmse", s.rmse),
                "–" if s.r2 is None else shown("r2", s.r2),
            ]
            for s in metrics.per_output
        ]
        yield _section("Outputs", _table(["output", "MAE", "RMSE", "R²"], outputs))


def _picture(name: str, png: bytes) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f'<section><img src="data:image/png;base64,{data}" alt="{escape(name)}"></section>'


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{content}</section>"


def _list(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _words(rows: Mapping[str, str]) -> str:
    cells = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in rows.items())
    return f'<table class="words"><tbody>{cells}</tbody></table>'
