import subprocess
import sys

from eagleray.registry.tracking import Tracker, flat


def test_without_start_nothing_is_written(tmp_path):
    assert Tracker(f"sqlite:///{tmp_path}/m.db", "runs").finish("FINISHED") == []
    assert list(tmp_path.iterdir()) == []


def test_flat_names():
    assert flat({"a": {"b": 1, "c": {}}, "d": [1, None], "e": "x", "f": True}) == {
        "a.b": "1",
        "a.c": "{}",
        "d": "[1, null]",
        "e": "x",
        "f": "true",
    }


def test_importing_the_room_does_not_import_mlflow():
    code = "import eagleray.registry, sys; sys.exit('mlflow' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": "platform"}, check=False).returncode
        == 0
    )
