"""The controller's loop and verbs, with a Serve and a registry that only pretend."""

from __future__ import annotations

import asyncio
import json
import logging
import stat
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eagleray.errors import CapacityError, InputError, ModelNotFound, PackageError, ServiceError
from eagleray.packaging.store import ModelVersion
from eagleray.registry.runs import RunRecord
from eagleray.serving import memory
from eagleray.serving.control_settings import INGRESS_APP, ControllerSettings
from eagleray.serving.controller import Controller
from eagleray.serving.controller_client import ControllerBackend
from eagleray.serving.reconcile import Seen
from eagleray.serving.routes import Routes
from eagleray.serving.serve_control_ray260 import App
from eagleray.specs.model_ref import Ref, pick
from support import cards


class PretendServe:
    """Runs what it is handed at once; `broken` is raised by everything, while there is one."""

    def __init__(self) -> None:
        self.apps: dict[str, Seen] = {}
        self.applied: list[str] = []
        self.broken: Exception | None = None
        self.refuses: Exception | None = None
        """Raised by `apply`."""
        self.is_open = True
        """Whether the ingress answers."""
        self.fails: dict[str, str] = {}
        self.decided: dict[str, dict[str, Any]] = {}
        self.runs = self.seems_to_run = True
        """As it is, and as a client thinks that found it earlier and has not looked again."""
        self.held = threading.Event()
        """Until it is set, applications do not end."""
        self.held.set()

    def start(self) -> None:
        self._check()

    def apply(self, apps) -> None:
        self._check()
        for app in apps:
            if self.refuses and app.name != INGRESS_APP:
                raise self.refuses
            self.applied.append(app.name)
            reason = self.fails.get(app.name)
            self.apps[app.name] = Seen("failed", reason) if reason else Seen("running")

    def is_running(self) -> bool:
        return self.seems_to_run

    def shut_down(self) -> None:
        self._check()
        self.apps.clear()
        self.runs = False

    def delete(self, names) -> None:
        self._check()
        self.held.wait()
        for name in names:
            self.apps.pop(name, None)

    def observe(self):
        self._check()
        return dict(self.apps)

    def forget(self) -> None:
        self.seems_to_run = self.runs

    def num_replicas(self):
        return dict.fromkeys(self.apps, 1)

    def decisions(self):
        return self.decided

    def _check(self) -> None:
        if self.broken:
            raise self.broken


class PretendStore:
    """Three versions of digits; 2 is the candidate."""

    def __init__(self) -> None:
        self.aliases = {2: ("candidate",)}

    def names(self):
        return ["digits"]

    def versions(self, name):
        if name != "digits":
            raise ModelNotFound(f"no model {name!r}; there are: digits")
        return [
            ModelVersion(name, n, f"/models/{n}", f"{n:064}", self.aliases.get(n, ()), {}, cards.lineage(), n)
            for n in (1, 2, 3)
        ]

    def resolve(self, ref):
        return pick(Ref.parse(ref), self.versions(Ref.parse(ref).name))

    def promote(self, name, version, alias):
        self.aliases = {version: (alias,)}


def assert_in_serve_thread() -> None:
    """Ray's building of a deployment must not run beside another call into Serve."""
    assert threading.current_thread().name.startswith("serve")


class PretendRuns:
    """One, of the spec digits."""

    def newest(self, limit, name):
        record = RunRecord("digits-1", "digits", "train", "finished", 1000.0, "test_accuracy", 0.5)
        return [record][:limit] if name in (None, "digits") else []


class PretendController(Controller):
    serve = PretendServe()
    store = PretendStore()

    def connect(self):
        return self.serve

    def open_store(self):
        return self.store

    def open_runs(self):
        return PretendRuns()

    def app_of(self, served):
        assert_in_serve_thread()
        return App(served.app, None, served.restart_fingerprint)

    def is_open(self):
        return self.serve.is_open

    def ingress(self):
        assert_in_serve_thread()
        return App(INGRESS_APP, None, "1")

    def require_capacity(self, spec):
        if spec.gpus_per_replica > 1:
            raise CapacityError("node types allow at most 0")


@pytest.fixture
def parts(monkeypatch, tmp_path):
    """A fresh Serve and registry, the settings of a controller, and cards without packages."""
    monkeypatch.setattr(PretendController, "serve", PretendServe())
    monkeypatch.setattr(PretendController, "store", PretendStore())
    monkeypatch.setattr("eagleray.serving.controller._RETRY_S", 0.05)

    def open_package(url, *, allow_code, digest):
        if url == "/models/3":
            raise PackageError("weights.safetensors does not match")
        return type("Package", (), {"card": cards.card()})

    monkeypatch.setattr("eagleray.packaging.open_package", open_package)
    return ControllerSettings(
        cluster="tests",
        directory=str(tmp_path / "serving"),
        admin_key_path=str(tmp_path / "admin.key"),
        host="127.0.0.1",
        port=1,
        storage_url="/models",
        tracking_uri="sqlite://",
    )


async def started(settings: ControllerSettings) -> PretendController:
    controller = PretendController(settings)
    controller.start()
    return controller


def with_controller(settings, scenario: Callable[[PretendController, ControllerBackend], Awaitable[None]]):
    async def run() -> None:
        controller = await started(settings)
        try:
            await scenario(controller, ControllerBackend(controller.admin))
        finally:
            controller.stop()

    asyncio.run(run())


async def until(condition: Callable[[], object], limit_s: float = 60.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)


def test_the_newest_runs(parts):
    async def scenario(controller, backend):
        [found] = await backend.runs(None, 1)
        assert (found["id"], found["metric"], found["value"]) == ("digits-1", "test_accuracy", 0.5)
        assert await backend.runs("nope", 20) == []

    with_controller(parts, scenario)


def test_trouble_lasts_until_the_ingress_answers(parts):
    async def scenario(controller, backend):
        controller.serve.is_open = False
        await until(lambda: controller.trouble == "the ingress does not answer yet")
        controller.serve.is_open = True
        await until(lambda: not controller.trouble)

    with_controller(parts, scenario)


def test_deploy_promote_replace_undeploy(parts):
    async def scenario(controller, backend):
        serve = controller.serve
        await until(lambda: not controller.trouble)
        answer = await backend.deploy({"name": "digits", "version": 1})
        assert (answer["version"], answer["state"]) == (1, "starting")
        await until(lambda: controller.record.is_settled)
        routes = Routes.from_json(json.loads(json.dumps(controller.ingress_state().to_json()["routes"])))
        assert routes.resolve("digits").state == "ready"
        await backend.promote("digits", 1, "champion")
        assert controller.record.routes().resolve("digits@champion").version == 1
        await backend.deploy({"name": "digits", "version": 2})
        await until(lambda: controller.record.services["digits"].default == 2)
        # The ingress has nothing under way on version 1 any more, and says so as it asks for news.
        assert "m--digits--v1" in serve.apps
        news = await controller.watch("ingress-1", 0, [], 0.0)
        assert news["draining"] == ["m--digits--v1"]
        await controller.watch("ingress-1", news["revision"], news["draining"], 0.0)
        await until(lambda: "m--digits--v1" not in serve.apps)
        decision = {"wanted": 3, "runs": 2, "reason": "much comes", "at": 1.0}
        serve.decided = {"m--digits--v2": decision}
        [service] = await backend.services()
        assert (service["version"], service["state"], service["replicas"]) == (2, "ready", 1)
        assert service["scaling"] == decision
        assert await backend.undeploy("digits", None) == {"name": "digits", "versions": [2]}
        with pytest.raises(ModelNotFound, match="no model 'digits' is deployed"):
            await backend.undeploy("digits", None)

    with_controller(parts, scenario)


@pytest.mark.parametrize("what", ["says goodbye", "was killed", "is cut off"])
def test_a_version_is_kept_for_a_gateway_that_is_cut_off_and_for_none_that_has_ended(
    parts, monkeypatch, what
):
    asked: list[str] = []

    def is_gone(name: str) -> bool:
        asked.append(name)
        return what == "was killed" and name == "ended"

    monkeypatch.setattr("eagleray.serving.gateway.identity_ray260.is_gone", is_gone)
    monkeypatch.setattr("eagleray.serving.readers._QUIET_S", 0.0)
    monkeypatch.setattr("eagleray.serving.lookout._LOOK_S", 0.0)
    for wait in ("_BUSY_S", "_QUIET_S"):
        monkeypatch.setattr(f"eagleray.serving.controller.{wait}", 0.01)

    async def scenario(controller, backend):
        await until(lambda: not controller.trouble)
        await controller.watch("ended", -1, [], 0.0)
        await backend.deploy({"name": "digits", "version": 1})
        await until(lambda: controller.record.is_settled)
        assert not asked, "nothing waits for it"
        await backend.deploy({"name": "digits", "version": 2})
        await until(lambda: controller.record.services["digits"].default == 2)
        news = await controller.watch("lives", -1, [], 0.0)
        await controller.watch("lives", news["revision"], ["m--digits--v1"], 0.0)
        if what == "says goodbye":
            controller.leave("ended")
        before = len(asked)
        await until(lambda: "m--digits--v1" not in controller.serve.apps or len(asked) > before + 6)
        assert ("m--digits--v1" in controller.serve.apps) == (what == "is cut off")

    with_controller(parts, scenario)


def test_a_restart_remembers_everything_and_starts_nothing_twice(parts):
    async def scenario(controller, backend):
        await backend.deploy({"name": "digits", "version": 1})
        created = await backend.create_key("app", ["infer"], {"requests_per_s": 5.0})
        await until(lambda: controller.record.is_settled and controller.serve.apps)
        controller.stop()
        applied = list(controller.serve.applied)
        again = await started(parts)
        try:
            await until(lambda: not again.trouble)
            assert again.record == controller.record
            assert again.record.keys.find(created["key"]).terms.requests_per_s == 5.0
            assert again.serve.applied == applied
            again.serve.apps.clear()  # and where Serve itself has lost everything, it is handed everything
            again._wake.set()
            await until(lambda: set(again.serve.apps) == {INGRESS_APP, "m--digits--v1"})
        finally:
            again.stop()

    with_controller(parts, scenario)


def test_an_end_that_nobody_waited_for_goes_on_and_one_that_failed_is_tried_again(parts):
    async def scenario(controller, backend):
        serve = controller.serve
        serve.apps["others"] = Seen("running")
        await backend.deploy({"name": "digits", "version": 1})
        await until(lambda: controller.record.is_settled and not controller.trouble)
        assert not (await controller.ping())["is_ending"]
        serve.broken = RuntimeError("Serve is away")
        with pytest.raises(RuntimeError):
            await controller.end()
        assert parts.record_path.exists()
        serve.broken = None
        serve.held.clear()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(controller.end(), 0.1)
        await until(lambda: controller.trouble == "Serve is ending ingress, m--digits--v1")
        assert (await controller.ping())["is_ending"]
        with pytest.raises(ServiceError, match="Serve is ending ingress"):  # it would outlive the end
            await backend.deploy({"name": "digits", "version": 2})
        again = asyncio.ensure_future(controller.end())
        serve.held.set()
        await again
        assert set(serve.apps) == {"others"}
        assert not parts.record_path.parent.exists()
        await controller.end()  # its answer may have been lost

    with_controller(parts, scenario)


def test_an_end_where_somebody_has_ended_serve_removes_the_record_and_nothing_beside_it(parts):
    async def scenario(controller, backend):
        await until(lambda: not controller.trouble)
        beside = parts.record_path.with_name("other")
        beside.touch()
        controller.serve.runs = False
        controller.serve.broken = RuntimeError("no Serve")
        await controller.end()
        assert not parts.record_path.exists()
        assert beside.exists()

    with_controller(parts, scenario)


def test_nobody_can_make_a_key_that_up_would_replace(parts):
    async def scenario(controller, backend):
        before = controller.record.keys
        with pytest.raises(InputError, match=r"'local admin' is that of `up`'s own.*choose another"):
            await backend.create_key(memory.ADMIN_KEY_NAME, ["admin"])
        [own] = [key.id for key in before.keys.values() if key.name == memory.ADMIN_KEY_NAME]
        with pytest.raises(InputError, match="is `up`'s own: revoke it"):  # its text is in a file
            await backend.rotate_key(own, 60.0)
        assert controller.record.keys == before

    with_controller(parts, scenario)


def test_the_clusters_key_is_made_once_kept_from_others_and_handed_to_gateways(parts, caplog):
    async def scenario():
        keys = []
        for _ in range(2):
            controller = await started(parts)
            controller.stop()
            keys.append((await controller.watch("i", -1, [], 60.0))["links"]["key"])
            record = controller.record
        assert keys[0] == keys[1]
        assert len(bytes.fromhex(keys[0])) == 32
        assert stat.S_IMODE(parts.record_path.stat().st_mode) == 0o600
        assert keys[0] not in caplog.text + repr(record) + json.dumps(controller.ingress_state().to_json())
        values = json.loads(parts.record_path.read_text())
        parts.record_path.write_text(json.dumps({**values, "link_key": "ab"}))
        damaged = await started(parts)
        damaged.stop()
        assert "link_key is not 32 bytes" in damaged.trouble

    with caplog.at_level(logging.DEBUG):
        asyncio.run(scenario())


def test_watch_returns_at_once_on_news_and_nothing_without(parts):
    async def scenario(controller, backend):
        await until(lambda: not controller.trouble)
        news = await controller.watch("i", -1, [], 60.0)
        assert await controller.watch("i", news["revision"], [], 0.05) is None
        waiting = asyncio.ensure_future(controller.watch("i", news["revision"], [], 60.0))
        await asyncio.sleep(0.02)
        created = await backend.create_key("app", ["infer"])
        async with asyncio.timeout(30):
            newer = await waiting
        assert newer["revision"] > news["revision"]
        assert created["id"] in newer["state"]["keys"]
        rotated = await backend.rotate_key(created["id"], 0)
        assert controller.record.keys.find(created["key"]) is None
        assert controller.record.keys.find(rotated["key"]) is not None
        await backend.revoke_key(created["id"])
        assert created["id"] not in controller.record.keys.keys

    with_controller(parts, scenario)


def test_gateways_are_replaced_and_counted_on_demand(parts):
    async def scenario(controller, backend):
        await until(lambda: controller.are_gateways_as_asked)
        assert await backend.gateways() == {
            "number": 1, "running": 1, "is_settled": True, "restarts": 0, "message": "",
        }  # fmt: skip
        news = await controller.watch("i", -1, [], 60.0)
        assert not (await backend.restart_gateways())["is_settled"]
        await until(lambda: controller.are_gateways_as_asked)
        assert controller.serve.applied == [INGRESS_APP] * 2
        await backend.scale_gateways(3)
        await until(lambda: controller.are_gateways_as_asked)
        assert controller.serve.applied == [INGRESS_APP] * 3
        newer = await controller.watch("i", news["revision"], [], 60.0)
        assert newer["settings"]["gateway"]["number"] == 3, "gateways share limits by how many there are"
        with pytest.raises(InputError, match="65 gateways; there may be 1 to 64"):
            await backend.scale_gateways(65)
        # It is remembered, until the spec says another number.
        again = PretendController(parts)
        again._load()
        assert (again.in_effect().gateway.number, again.record.gateways.restarts) == (3, 1)
        other = PretendController(replace(parts, gateway=replace(parts.gateway, number=2)))
        other._load()
        assert other.in_effect().gateway.number == 2

    with_controller(parts, scenario)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ({"name": "letters"}, ModelNotFound, "no model 'letters'"),
        ({"name": "digits", "version": 9}, ModelNotFound, "no version 9"),
        ({"name": "digits", "version": "@gone"}, ModelNotFound, "no alias 'gone'"),
        ({"name": "digits", "version": 3}, PackageError, "does not match"),
        ({"name": "digits", "gpus_per_replica": 8}, CapacityError, "at most 0"),
    ],
)
def test_a_deploy_that_cannot_be_right_changes_nothing(parts, spec, error, message):
    async def scenario(controller, backend):
        before = controller.record
        with pytest.raises(error, match=message):
            await backend.deploy({"version": 1, **spec})
        assert controller.record.services == before.services
        assert (await backend.deploy({"name": "digits", "version": 1}))["state"] == "starting"

    with_controller(parts, scenario)


def test_serve_away_is_trouble_until_it_is_back(parts):
    async def scenario(controller, backend):
        await until(lambda: not controller.trouble)
        controller.serve.broken = ConnectionError("the GCS is away")
        await backend.deploy({"name": "digits", "version": 1})
        await until(lambda: "the GCS is away" in controller.trouble)
        controller.serve.broken = None
        await until(lambda: not controller.trouble and controller.record.is_settled)

    with_controller(parts, scenario)


def test_what_serve_refuses_is_a_failed_version(parts):
    async def scenario(controller, backend):
        await until(lambda: not controller.trouble)
        controller.serve.refuses = ValueError("num_gpus is odd")
        await backend.deploy({"name": "digits", "version": 1})
        await until(lambda: controller.record.services["digits"].versions[1].failure)
        [service] = await backend.services()
        assert (service["state"], service["message"]) == ("failed", "Serve refuses it: num_gpus is odd")

    with_controller(parts, scenario)


def test_a_replica_that_does_not_start(parts):
    async def scenario(controller, backend):
        controller.serve.fails["m--digits--v1"] = "…\neagleray.errors.PackageError: code/net.py is missing"
        await backend.deploy({"name": "digits", "version": 1})
        await until(lambda: controller.record.services["digits"].versions[1].failure)
        await until(lambda: "m--digits--v1" not in controller.serve.apps)
        [service] = await backend.services()
        assert (service["state"], service["message"]) == ("failed", "code/net.py is missing")

    with_controller(parts, scenario)


def test_a_start_from_zero_that_fails_is_told_to_the_ingresses(parts, monkeypatch):
    monkeypatch.setattr("eagleray.serving.controller._QUIET_S", 0.02)

    async def scenario(controller, backend):
        app = "m--digits--v1"
        await backend.deploy({"name": "digits", "version": 1, "min_replicas": 0})
        await until(lambda: controller.record.is_settled and app in controller.serve.apps)
        revision = controller.record.revision
        failed = "The deployment failed to start {} times in a row. Error:\nOSError: no space left"
        controller.serve.apps[app] = Seen("deploying", failed.format(1))
        news = await controller.watch("ingress-1", revision, [], 10.0)
        [trouble] = news["ailing"].values()
        assert (trouble["tries"], trouble["is_final"]) == (1, False)
        assert trouble["reason"].endswith("OSError: no space left")
        controller.serve.apps[app] = Seen("deploying", failed.format(3))
        news = await controller.watch("ingress-1", news["revision"], [], 10.0)
        assert news["ailing"][app]["is_final"], "enough have failed"
        controller.serve.apps[app] = Seen("running")
        news = await controller.watch("ingress-1", news["revision"], [], 10.0)
        assert news["ailing"] == {}
        assert memory.load(controller.settings.record_path).ailing == {}

    with_controller(parts, scenario)


def test_aliases_that_somebody_else_moved_are_taken_over(parts, monkeypatch):
    monkeypatch.setattr("eagleray.serving.controller._ALIASES_S", 0.0)

    async def scenario(controller, backend):
        await backend.deploy({"name": "digits", "version": 1})
        assert controller.record.services["digits"].aliases == {"candidate": 2}
        controller.store.promote("digits", 1, "candidate")
        await until(lambda: controller.record.services["digits"].aliases == {"candidate": 1})

    with_controller(parts, scenario)


def test_models_of_the_registry_say_what_is_deployed(parts):
    async def scenario(controller, backend):
        await backend.deploy({"name": "digits", "version": 1})
        [model] = await backend.models()
        assert model["versions"] == [1, 2, 3]
        assert (model["aliases"], model["deployed"]) == ({"candidate": 2}, [1])
        assert [entry["version"] for entry in (await backend.model("digits"))["versions"]] == [1, 2, 3]
        with pytest.raises(ModelNotFound):
            await backend.model("letters")

    with_controller(parts, scenario)


def test_a_record_that_cannot_be_read_is_trouble_until_it_is_moved_away(parts, monkeypatch):
    monkeypatch.setattr("eagleray.serving.controller._QUIET_S", 0.02)
    Path(parts.directory).mkdir()
    parts.record_path.write_text("{")

    async def scenario(controller, backend):
        with pytest.raises(ServiceError, match="cannot be read"):
            await backend.keys()
        assert await controller.watch("i", -1, [], 0.05) is None
        assert parts.record_path.read_text() == "{"
        parts.record_path.unlink()
        await until(lambda: not controller.trouble)
        assert len(await backend.keys()) == 1

    with_controller(parts, scenario)


def test_what_nobody_expected_is_one_sentence(parts):
    class Unsendable(Exception):
        def __reduce__(self):
            raise TypeError("cannot be pickled")

    async def scenario(controller, backend):
        await until(lambda: not controller.trouble)

        def broken(name):
            raise Unsendable("the schema\nis not there")

        controller.store.versions = broken
        with pytest.raises(
            ServiceError, match="controller failed: Unsendable: the schema is not there; its log"
        ):
            await backend.model("digits")
        assert await backend.keys()

    with_controller(parts, scenario)
