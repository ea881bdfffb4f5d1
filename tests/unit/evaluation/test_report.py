"""The report as JSON, as lines and as a page that needs nothing else; its pictures."""

from __future__ import annotations

import base64
import json
import re
import struct
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from eagleray.evaluation import (
    Evidence,
    LanguageSums,
    Report,
    classification,
    draw,
    html,
    judge,
    lines,
    regression,
)

HISTORY = [{"step": step, "loss": 2 / (1 + step), "validation_loss": 2.1 / (1 + step)} for step in range(9)]
AWKWARD = ("$x_1^", "<script>alert(1)</script>", "名前 \n& so on " + "y" * 60)


def outcome(task):
    """Metrics of a task, and the arrays that its pictures need."""
    rng = np.random.default_rng(0)
    if task == "classification":
        targets = rng.integers(0, 3, 80)
        probabilities = rng.dirichlet(np.ones(3), 80).astype(np.float32)
        return classification(targets, probabilities, AWKWARD), {"targets": targets, "outputs": probabilities}
    if task == "regression":
        targets = rng.normal(size=(80, 2))
        return regression(targets, targets + 0.1), {"targets": targets, "outputs": targets + 0.1}
    sums = LanguageSums()
    sums.add(rng.integers(0, 9, (8, 6)), rng.normal(size=(8, 6, 9)))
    return sums.result(), {}


@pytest.fixture(scope="module", params=["classification", "regression", "language modelling"])
def report(request, tmp_path_factory):
    metrics, arrays = outcome(request.param)
    folder = tmp_path_factory.mktemp("pictures")
    return Report(
        evaluation_id="try-20260131-120000-ab12",
        created_at=1.8e9,
        model={"model": "run <b>x</b>", "digest": "0" * 64},
        data={"dataset": "digits & others"},
        ids={"run": "digits-1"},
        part="test",
        metrics=metrics,
        train=metrics,
        judgement=judge(Evidence(metrics.loss, metrics.loss)),
        warnings=("the data <changed>",),
        pictures=draw(metrics, folder, history=HISTORY, **arrays),
    )


PICTURES = {
    "classification": ["confusion-matrix", "classes", "roc", "calibration", "curves"],
    "regression": ["predicted", "residuals", "curves"],
    "language modelling": ["positions", "curves"],
}


def test_the_pictures_of_each_task_are_drawn(report):
    assert [picture.name for picture in report.pictures] == PICTURES[report.metrics.task]
    for picture in report.pictures:
        data = picture.path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", data[16:24])
        assert 600 <= width <= 1600
        assert 300 <= height <= 1600


class Page(HTMLParser):
    """Collects tags, addresses and text; complains of tags that are not closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.words, self._open = [], [], [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_is_whole_and_needs_nothing_else(report):
    text = html(report)
    page = Page(text)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert page.tags.count("img") == len(report.pictures)
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    embedded = [base64.b64decode(address.partition(",")[2]) for address in page.addresses]
    assert embedded == [picture.path.read_bytes() for picture in report.pictures]
    without_pictures = re.sub(r"data:image/png;base64,[^\"]*", "", text)
    assert re.findall(r"https?://|url\(|@import", without_pictures) == []
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    words = " ".join(page.words)
    assert "run <b>x</b>" in words  # as text, not as a tag
    assert "the data <changed>" in words
    assert report.judgement.headline in words


def test_the_json_is_plain_and_whole(report):
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document["metrics"]["values"] == pytest.approx(dict(report.metrics.values))
    assert document["judgement"]["verdict"] == report.judgement.verdict
    assert document["pictures"] == [f"{picture.name}.png" for picture in report.pictures]
    assert document["train"]["num_samples"] == report.metrics.num_samples
    if report.metrics.task == "classification":
        assert np.sum(document["metrics"]["confusion_matrix"]) == 80


def test_the_lines_fit_a_log(report):
    text = lines(report)
    assert "\n" not in "".join(text)
    assert text[0].startswith("run <b>x</b> on the test part: ")
    assert any(line == "warning: the data <changed>" for line in text)
    table = [line for line in text if re.search(r"\d$|%$", line) and line.startswith("  ")]
    assert len(table) >= len(report.metrics.values)


@pytest.mark.parametrize("num_classes", [2, 70])
def test_any_number_of_classes_is_drawn(tmp_path, num_classes):
    rng = np.random.default_rng(0)
    targets = rng.integers(0, num_classes, 400)
    probabilities = rng.dirichlet(np.ones(num_classes), 400)
    labels = [f"class number {index}" for index in range(num_classes)]
    metrics = classification(targets, probabilities, labels)
    pictures = draw(metrics, tmp_path, targets=targets, outputs=probabilities)
    assert all(picture.path.stat().st_size > 5000 for picture in pictures)


def test_one_sample_is_drawn(tmp_path):
    values = np.ones((1, 1))
    pictures = draw(regression(values, values), tmp_path, targets=values, outputs=values)
    assert [picture.name for picture in pictures] == ["predicted", "residuals"]


def test_no_global_plotting_state_is_touched(tmp_path):
    loaded = "matplotlib.pyplot" in sys.modules
    draw(*[outcome("language modelling")[0], tmp_path])
    assert ("matplotlib.pyplot" in sys.modules) == loaded
