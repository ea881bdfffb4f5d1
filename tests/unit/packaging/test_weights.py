import uuid

import pytest
import torch

from eagleray.errors import CheckpointError
from eagleray.packaging import CheckpointStore, Folder, load_weights, verify_directory
from eagleray.packaging.manifest import FileEntry, Manifest
from eagleray.packaging.tensors import pack

WEIGHTS = {"w": torch.arange(6.0)}


@pytest.fixture(params=["disk", "memory"])
def url(request, tmp_path):
    return str(tmp_path / "run") if request.param == "disk" else f"memory://{uuid.uuid4().hex}/run"


def checkpoint(url, step):
    store = CheckpointStore(f"{url}/checkpoints")
    weights = {"w": WEIGHTS["w"] + step}
    return store.commit(step, attempt=1, tensors={"weights": weights}, state={})


def package(url, files):
    folder = Folder(url)
    for name, data in files.items():
        folder.write_bytes(name, data)
    folder.write_bytes("MANIFEST.json", Manifest({n: FileEntry.of(d) for n, d in files.items()}).to_bytes())
    return folder


def test_weights_of_a_run_its_checkpoints_or_one_of_them(url):
    first = checkpoint(url, 100)
    checkpoint(url, 150)
    for place, step in [(url, 150), (f"{url}/checkpoints", 150), (first.url, 100), (f"{first.url}/", 100)]:
        assert torch.equal(load_weights(place)["w"], WEIGHTS["w"] + step)


def test_weights_of_a_package(url):
    folder = package(url, {"model.json": b"{}", "weights.safetensors": pack(WEIGHTS), "code/net.py": b"pass"})
    assert torch.equal(load_weights(url)["w"], WEIGHTS["w"])
    assert sorted(verify_directory(url).files) == folder.files()[1:]


def test_a_damaged_newest_checkpoint_is_said(url):
    checkpoint(url, 100)
    Folder(checkpoint(url, 150).url).write_bytes("state.json", b"{}")
    said = []
    assert torch.equal(load_weights(url, said.append)["w"], WEIGHTS["w"] + 100)
    assert said == ["checkpoint step 150: state.json does not match its manifest; using step 100"]
    with pytest.warns(UserWarning, match="using step 100"):
        load_weights(url)


def test_each_way_to_be_wrong_is_told(url):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_weights(url)
    Folder(url).write_json("spec.json", {})
    with pytest.raises(CheckpointError, match="holds no committed checkpoint and no MANIFEST"):
        load_weights(url)
    made = checkpoint(url, 10)
    Folder(made.url).remove("COMMIT")
    with pytest.raises(CheckpointError, match="was not committed"):
        load_weights(made.url)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda folder: folder.write_bytes("code/net.py", b"evil"),
            "code/net.py does not match its manifest",
        ),
        (lambda folder: folder.write_bytes("code/more.py", b""), "code/more.py is not listed"),
        (lambda folder: folder.remove("model.json"), "model.json is missing"),
        (lambda folder: folder.write_bytes("MANIFEST.json", b"{}"), "MANIFEST.json cannot be read"),
        (lambda folder: folder.write_bytes("MANIFEST.json", b"\xff"), "MANIFEST.json cannot be read"),
        (lambda folder: folder.remove("MANIFEST.json"), "MANIFEST.json is missing"),
        (
            lambda folder: folder.write_bytes(
                "MANIFEST.json", Manifest({"../x": FileEntry.of(b"")}).to_bytes()
            ),
            "names a file outside",
        ),
    ],
)
def test_a_package_that_differs_from_its_manifest(url, change, says):
    folder = package(url, {"model.json": b"{}", "code/net.py": b"pass"})
    change(folder)
    with pytest.raises(CheckpointError, match=says):
        verify_directory(url)
    folder.write_bytes(".nfs0001", b"")  # what a file system leaves is nobody's
