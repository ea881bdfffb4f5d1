"""Where things are kept, whatever directory a process works in."""

import pytest

from eagleray.cluster import settings


@pytest.mark.parametrize(
    ("given", "found"),
    [("out", "{here}/out"), ("/data", "/data"), ("s3://bucket/x", "s3://bucket/x"), ("~/x", "{home}/x")],
)
def test_a_storage_path_is_absolute(monkeypatch, tmp_path, given, found):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("EAGLERAY_STORAGE", given)
    assert settings.storage_url() == found.format(here=tmp_path, home="/home/me")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("sqlite:///ml.db", "sqlite:///{here}/ml.db"),
        ("sqlite:////data/ml.db", "sqlite:////data/ml.db"),
        ("http://mlflow:5000", "http://mlflow:5000"),
    ],
)
def test_a_tracking_file_is_absolute(monkeypatch, tmp_path, given, found):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EAGLERAY_TRACKING_URI", given)
    assert settings.tracking_uri() == found.format(here=tmp_path)
