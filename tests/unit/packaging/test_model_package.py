import errno
import json
import os
import random
import re
import shutil
import sys
import time
import uuid

import pytest
import torch

from eagleray.errors import PackageError
from eagleray.packaging import Folder, load_weights, open_package, storage, write_package
from eagleray.packaging.manifest import FileEntry, Manifest
from eagleray.specs import Architecture
from eagleray.specs.model import ModuleModel
from support import crashing
from support.cards import MODELS, card, weights

CARD = card()
WEIGHTS = weights(CARD)
NET = """
from torch import nn
from parts.sizes import WIDTH
def build(signature, outputs): return nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, outputs))
"""


@pytest.fixture(params=["disk", "memory"])
def url(request, tmp_path):
    place = str(tmp_path) if request.param == "disk" else f"memory://{uuid.uuid4().hex}"
    return f"{place}/models/digits/p"


@pytest.fixture
def own(tmp_path):
    """A card, weights and the code of a model of the user's own; what it imports is forgotten afterwards."""
    code = Folder(tmp_path / "run/code")
    code.write_bytes("own_net.py", NET.encode())
    code.write_bytes("parts/sizes.py", b"WIDTH = 64\n")
    code.write_bytes("parts/notes.txt", b"left out")
    model = ModuleModel(kind="module", function="own_net:build", arguments={"outputs": 3})
    made = card(architecture=Architecture.of(model))
    path = list(sys.path)
    yield made, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)).state_dict(), code
    sys.path[:] = path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("own_net", "parts")]:
        del sys.modules[name]


def rewrite(url, name, data):
    """Change a file and make manifest and marker fit, as somebody with the right to write there could."""
    folder = Folder(url)
    if data is None:
        folder.remove(name)
    else:
        folder.write_bytes(name, data)
    files = {found: FileEntry.of(folder.read_bytes(found)) for found in folder.files() if found.islower()}
    files |= {found: FileEntry.of(folder.read_bytes(found)) for found in folder.files() if "/" in found}
    manifest = Manifest(files)
    folder.write_bytes("MANIFEST.json", manifest.to_bytes())
    folder.write_bytes("COMMIT", f"{manifest.digest}\n".encode())


@pytest.mark.parametrize("kind", MODELS)
def test_what_was_written_is_opened(tmp_path, kind):
    written = card(kind)
    state = weights(written)
    manifest = write_package(Folder(tmp_path / "p"), written, state)
    package = open_package(tmp_path / "p", digest=manifest.digest)
    assert package.card == written
    assert package.digest == manifest.digest
    module = package.build_module()
    assert not module.training
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_a_package_lies_in_any_storage(url):
    manifest = write_package(Folder(url), CARD, WEIGHTS)
    assert open_package(url).card == CARD
    assert Folder(url).files() == ["COMMIT", "MANIFEST.json", "model.json", "weights.safetensors"]
    assert Folder(url.rpartition("/")[0]).list() == ["p"]  # nothing temporary
    assert all(torch.equal(value, WEIGHTS[name]) for name, value in load_weights(url).items())
    assert write_package(Folder(url), CARD, WEIGHTS) == manifest  # the same again is fine
    with pytest.raises(PackageError, match=r"holds another model package already"):
        write_package(Folder(url), card(metrics={}), WEIGHTS)


@pytest.mark.parametrize("left", [".writing", "model.json"])
def test_a_folder_that_holds_something_else_is_refused_and_left_alone(url, left):
    Folder(url).write_bytes(left, b"of another process")
    with pytest.raises(PackageError, match=r"is not empty and holds no whole model package: another process"):
        write_package(Folder(url), CARD, WEIGHTS)
    assert Folder(url).files() == [left]
    assert Folder(url.rpartition("/")[0]).list() == ["p"]


def test_a_writer_that_came_and_went_just_before_loses_nothing(monkeypatch):
    url = f"memory://{uuid.uuid4().hex}/p"
    create, quicker = Folder.create, card(metrics={})

    def late(self, name, data):
        monkeypatch.undo()
        write_package(Folder(url), quicker, WEIGHTS)
        return create(self, name, data)

    monkeypatch.setattr(Folder, "create", late)
    with pytest.raises(PackageError, match="is not empty"):
        write_package(Folder(url), CARD, WEIGHTS)
    assert open_package(url).card == quicker


def written_by_two(url, cards):
    """Exit codes of two processes that write into one folder at once; 0: it is there, 2: refused."""
    reading, writing = os.pipe()
    children = []
    for written in cards:
        pid = os.fork()
        if pid == 0:
            os.close(writing)
            os.read(reading, 1)  # until both are there
            try:
                os._exit(outcome_of(url, written))
            finally:
                os._exit(1)
        children.append(pid)
    os.close(reading)
    os.close(writing)
    return sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children)


def outcome_of(url, written):
    try:
        manifest = write_package(Folder(url), written, WEIGHTS)
    except PackageError as error:
        return 2 if "holds another model package already" in str(error) else 3
    open_package(url, digest=manifest.digest).weights()
    return 0


@pytest.mark.parametrize("rounds", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_two_processes_that_write_to_one_folder_break_nothing(rounds, tmp_path, monkeypatch):
    write = Folder.write_new

    def slowly(*arguments):
        time.sleep(random.SystemRandom().uniform(0, 0.004))
        write(*arguments)

    monkeypatch.setattr(Folder, "write_new", slowly)
    other = card(metrics={})
    for number in range(rounds):
        assert written_by_two(tmp_path / str(number) / "p", [CARD, CARD]) == [0, 0]
        assert written_by_two(tmp_path / str(number) / "q", [CARD, other]) == [0, 2]
        assert sorted(os.listdir(tmp_path / str(number))) == ["p", "q"]  # nothing temporary


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors", "MANIFEST.json", "COMMIT"])
def test_a_changed_byte_is_found(url, name):
    write_package(Folder(url), CARD, WEIGHTS)
    data = bytearray(Folder(url).read_bytes(name))
    data[len(data) // 2] ^= 0x01
    Folder(url).write_bytes(name, bytes(data))
    with pytest.raises(
        PackageError,
        match=rf"{re.escape(Folder(url).url)}.*(does not match its manifest|cannot be read).*again",
    ):
        open_package(url).build_module()


def test_a_manifest_that_nests_without_end_is_damage(url):
    write_package(Folder(url), CARD, WEIGHTS)
    Folder(url).write_bytes("MANIFEST.json", b"[" * 100_000)
    with pytest.raises(PackageError, match=r"MANIFEST.json cannot be read"):
        open_package(url)


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors", "MANIFEST.json", "COMMIT"])
def test_a_missing_file_is_named(url, name):
    write_package(Folder(url), CARD, WEIGHTS)
    Folder(url).remove(name)
    with pytest.raises(PackageError, match="was not committed" if name == "COMMIT" else f"{name} is missing"):
        open_package(url)


def test_a_file_more_is_found(url):
    write_package(Folder(url), CARD, WEIGHTS)
    Folder(url).write_bytes("code/evil.py", b"")
    with pytest.raises(PackageError, match=r"code/evil.py is not listed"):
        open_package(url)


def test_nothing_there(url):
    with pytest.raises(PackageError, match=r"there is no model package"):
        open_package(url)


def test_a_package_that_was_replaced_is_not_the_one_asked_for(url):
    digest = write_package(Folder(url), CARD, WEIGHTS).digest
    rewrite(url, "model.json", (card(name="other").model_dump_json() + "\n").encode())
    assert open_package(url).card.name == "other"
    with pytest.raises(PackageError, match=rf"and {digest[:16]} was asked for"):
        open_package(url, digest=digest)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.update(format=2), "format"),
        (lambda table: table.pop("lineage"), "lineage"),
        (lambda table: table.update(surprise=1), "surprise"),
        (lambda table: table["architecture"]["arguments"]["spec"].update(kind="module"), "architecture"),
    ],
)
def test_a_card_that_this_version_does_not_read_is_refused(url, change, said):
    write_package(Folder(url), CARD, WEIGHTS)
    table = json.loads(CARD.model_dump_json())
    change(table)
    rewrite(url, "model.json", json.dumps(table).encode())
    with pytest.raises(PackageError, match=rf"model.json is not a card that this eagleray reads \(.*{said}"):
        open_package(url)


def test_weights_of_another_model(url):
    write_package(Folder(url), CARD, {**WEIGHTS, "more": torch.zeros(1)})
    with pytest.raises(PackageError, match=r"weights are not those of its architecture: .*more"):
        open_package(url).build_module()


def test_no_pickle_is_written_or_read(url):
    write_package(Folder(url), CARD, WEIGHTS)
    rewrite(url, "weights.safetensors", None)
    rewrite(url, "weights.pt", b"\x80\x04.")
    with pytest.raises(PackageError, match=r"weights.safetensors is missing"):
        open_package(url)


def test_float64_weights_stay_so(url):
    write_package(Folder(url), CARD, {name: value.double() for name, value in WEIGHTS.items()})
    module = open_package(url).build_module()
    assert {value.dtype for value in module.state_dict().values()} == {torch.float64}


def test_a_users_own_model_runs_only_where_it_is_allowed(url, own):
    manifest = write_package(Folder(url), *own)
    assert sorted(manifest.files) == [
        "code/own_net.py",
        "code/parts/sizes.py",
        "model.json",
        "weights.safetensors",
    ]
    refusal = (
        r"'own_net:build' is none of eagleray's own: it needs code/own_net.py .* allow_code = true by an"
    )
    with pytest.raises(PackageError, match=refusal):
        open_package(url)
    assert "own_net" not in sys.modules
    module = open_package(url, allow_code=True).build_module()
    assert torch.equal(module[1].weight, own[1]["1.weight"])
    assert not str(sys.modules["own_net"].__file__).startswith(url)
    open_package(url, allow_code=True)  # Python wrote no bytecode into it


def test_two_packages_with_modules_of_one_name_keep_their_own(tmp_path, own):
    made, state, code = own
    write_package(Folder(tmp_path / "a"), made, state, code)
    code.write_bytes("own_net.py", NET.replace("nn.Flatten()", "nn.Flatten(), nn.Identity()").encode())
    write_package(
        Folder(tmp_path / "b"), made, {name.replace("1.", "2."): value for name, value in state.items()}, code
    )
    first = open_package(tmp_path / "a", allow_code=True).build_module()
    second = open_package(tmp_path / "b", allow_code=True).build_module()
    assert [len(first), len(second)] == [2, 3]


def test_a_module_that_is_missing_is_named(url, own):
    made, state, _ = own
    write_package(Folder(url), made, state)
    with pytest.raises(PackageError, match=r"it needs another library's code"):
        open_package(url)
    with pytest.raises(PackageError, match=r"cannot import 'own_net'"):
        open_package(url, allow_code=True).build_module()


def test_changed_code_never_runs(url, own):
    write_package(Folder(url), *own)
    Folder(url).write_bytes("code/own_net.py", b"raise SystemExit('ran')")
    with pytest.raises(PackageError, match=r"code/own_net.py does not match its manifest"):
        open_package(url, allow_code=True).build_module()


def test_carried_code_takes_no_place_of_an_installed_library(url, own):
    made, state, code = own
    code.write_bytes("torch.py", b"raise SystemExit('ran')")
    code.write_bytes("json/__init__.py", b"raise SystemExit('ran')")
    write_package(Folder(url), made, state, code)
    open_package(url, allow_code=True).build_module()
    assert sys.modules["torch"] is torch
    assert sys.modules["json"] is json


def is_whole_or_not_there(folder):
    """True for whole, False for not there."""
    try:
        package = open_package(folder, allow_code=True)
    except PackageError as error:
        message = str(error)
    else:
        return len(package.weights()) > 0
    assert re.search("no model package|not committed|COMMIT does not match", message)
    return False


def test_power_lost_at_any_operation_leaves_a_whole_package_or_none(tmp_path, monkeypatch, own):
    counting = crashing.CrashingOs()
    monkeypatch.setattr(storage, "os", counting)
    write_package(Folder(tmp_path / "count/p"), *own)
    assert {"mkdir", "write", "fsync", "rename"} <= set(counting.done)
    whole = 0
    for crash_at in range(len(counting.done)):
        folder = tmp_path / f"crash-{crash_at}/p"
        monkeypatch.setattr(storage, "os", crashing.CrashingOs(crash_at, tears=True))
        with pytest.raises(crashing.Crash):
            write_package(Folder(folder), *own)
        monkeypatch.undo()
        whole += is_whole_or_not_there(folder)
        manifest = write_package(Folder(folder), *own)  # nothing is in the next publisher's way
        assert open_package(folder, allow_code=True, digest=manifest.digest).card == own[0]
        shutil.rmtree(folder.parent)
    assert whole == 2  # killed while its name was synced: open, fsync


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_failing_disk_at_any_operation_leaves_nothing(tmp_path, monkeypatch, code):
    counting = crashing.CrashingOs()
    monkeypatch.setattr(storage, "os", counting)
    write_package(Folder(tmp_path / "count/p"), CARD, WEIGHTS)
    for fail_at in range(len(counting.done)):
        parent = tmp_path / f"fail-{fail_at}"
        error = OSError(code, os.strerror(code))
        monkeypatch.setattr(storage, "os", crashing.CrashingOs(fail_at, error=error))
        with pytest.raises(PackageError, match=rf"cannot be written to .*: {os.strerror(code)}; make room"):
            write_package(Folder(parent / "p"), CARD, WEIGHTS)
        monkeypatch.undo()
        assert not parent.exists() or os.listdir(parent) == [], counting.done[fail_at]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def build(signature, outputs): return outputs / 0", "failed: ZeroDivisionError: division by zero"),
        ("def build(signature, outputs) return 1", "cannot import 'own_net': SyntaxError"),
        ("def build(signature): return 1", r"called with \['outputs', 'signature'\]: .*unexpected keyword"),
        ("def build(signature, outputs): return 1", r"returned int; it must return a torch.nn.Module"),
        ("def other(): pass", r"has no function or class 'build'"),
    ],
)
def test_a_users_code_that_fails_is_told(tmp_path, own, source, said):
    made, state, code = own
    code.write_bytes("own_net.py", source.encode())
    write_package(Folder(tmp_path / "p"), made, state, code)
    with pytest.raises(PackageError, match=said):
        open_package(tmp_path / "p", allow_code=True).build_module()


def test_weights_that_are_no_safetensors(url):
    write_package(Folder(url), CARD, WEIGHTS)
    rewrite(url, "weights.safetensors", b"not at all")
    with pytest.raises(PackageError, match=r"weights.safetensors is no safetensors file"):
        open_package(url).build_module()
