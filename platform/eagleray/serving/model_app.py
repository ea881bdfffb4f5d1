"""One model version as one Serve application without a route: its replicas, and how many of them."""

from __future__ import annotations

import asyncio
import math
import time
import warnings
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from eagleray.serving.scaling_policy import POLICY
from eagleray.serving.serve_control_ray260 import App

if TYPE_CHECKING:
    import numpy as np

    from eagleray.inference import Predictor
    from eagleray.protocol.generation import GenerationChunk, GenerationRequest
    from eagleray.serving.replica.texts import Texts
    from eagleray.serving.services import ServedVersion
    from eagleray.specs import ServiceSpec

DEPLOYMENT = "Model"
REFUSED = "refused"
"""Key of an answer that is no outputs: the values were wrong, and this says how."""
_STARTS = 1
"""Tries of the first replica. The controller tries again, but not what would go wrong again."""
_DRAIN_S = 60.0
_CLOSE_MARGIN_S = 5.0
_WARM_UP_TOKENS = 2
_TIMED_PASSES = 3
"""The quickest counts: while a replica starts, other work on its cores makes any of them slower."""
_TIMED_S = 0.5
"""After so long there are no more: a start is not to wait for them."""
_MOST_SLOTS = 16
"""Texts at a time; each has its own memory of the whole context from the start."""


def app_of(served: ServedVersion, links: Mapping[str, Any]) -> App:
    """The application that serves the version; `links`: see `arguments_of`."""
    arguments = arguments_of(served.spec, served.url, served.digest, links)
    return App(served.app, build(served.spec, arguments), served.restart_fingerprint)


def arguments_of(spec: ServiceSpec, url: str, digest: str | None, links: Mapping[str, Any]) -> dict[str, Any]:
    """What a ModelReplica is made from: plain values.

    `links`: the cluster's key, as hexadecimal "key", and "max_frame_bytes".
    """
    return {
        "url": url,
        "digest": digest,
        "allow_code": spec.allow_code,
        "max_batch_size": spec.max_batch_size,
        "num_threads": max(1, math.floor(spec.cpus_per_replica)),
        "num_gpus": math.ceil(spec.gpus_per_replica),
        "max_queued": spec.max_queued_requests,
        "links": dict(links),
    }


def build(spec: ServiceSpec, arguments: Mapping[str, Any]) -> Any:
    """The Serve application of one deployment, to be handed to Serve.

    Args:
        spec: How many replicas there may be, and what each takes.
        arguments: Of ModelReplica.
    """
    from ray import serve
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    terms = {
        "bundle": spec.resources,
        "label_selector": dict(spec.label_selector),
        "idle_s": spec.idle_s,
        "target_ongoing_requests": spec.target_ongoing_requests,
        "objective_s": None if spec.objective_p95_ms is None else spec.objective_p95_ms / 1000,
        "max_batch_size": spec.max_batch_size,
        "schedules": list(spec.schedules),
        "time_zone": spec.time_zone,
    }
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # metrics_interval_s: what is to replace it is not read
        autoscaling = AutoscalingConfig(
            min_replicas=spec.min_replicas,
            # Also where none need stay: only a replica that came up shows that the package is good.
            initial_replicas=max(1, spec.min_replicas),
            max_replicas=spec.max_replicas,
            target_ongoing_requests=spec.target_ongoing_requests,
            metrics_interval_s=1.0,
            look_back_period_s=3.0,
            # Both are the policy's own: what the ledger wants back goes at once.
            upscale_delay_s=0.0,
            downscale_delay_s=0.0,
            policy=AutoscalingPolicy(policy_function=POLICY, policy_kwargs=terms),
        )
        deployment = serve.deployment(
            name=DEPLOYMENT,
            autoscaling_config=autoscaling,
            # Twice: the next batch gathers while one computes. Fewer than a batch would never fill it.
            max_ongoing_requests=max(2 * spec.max_batch_size, math.ceil(2 * spec.target_ongoing_requests)),
            max_queued_requests=spec.max_queued_requests,
            ray_actor_options=_actor_options(spec),
            max_constructor_retry_count=_STARTS,
            max_surge_percent=100,  # else old replicas end before new ones answer
            logging_config={"enable_access_log": False},
            health_check_period_s=2.0,
            graceful_shutdown_wait_loop_s=0.2,
            graceful_shutdown_timeout_s=_DRAIN_S,
        )(ModelReplica)
    return deployment.bind(dict(arguments))


def _actor_options(spec: ServiceSpec) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": spec.cpus_per_replica, "num_gpus": spec.gpus_per_replica}
    if spec.label_selector:
        options["label_selector"] = dict(spec.label_selector)
    return options


class ModelReplica:
    """Loads one package, and answers for it: over links past Serve, and by Serve's handles.

    What takes long is computed in a thread of the model's own, all the rest in that of its link server.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """Load the package, run it once, and listen. Raises: PackageError where it does not verify."""
        from eagleray.cluster.loopback_ray260 import keep_replica_to_node_address

        keep_replica_to_node_address()
        import torch

        from eagleray import device
        from eagleray.inference import Predictor
        from eagleray.packaging import open_package
        from eagleray.serving import garbage
        from eagleray.serving.replica import listening
        from eagleray.serving.replica.asking import Asking
        from eagleray.serving.replica.batcher import Batcher
        from eagleray.serving.replica.fit import Fits
        from eagleray.serving.replica.handler import ReplicaHandler
        from eagleray.serving.replica.joining import joining_of

        num_threads = arguments["num_threads"]
        torch.set_num_threads(num_threads)  # for this thread, which is the loop's, alone
        package = open_package(
            arguments["url"], allow_code=arguments["allow_code"], digest=arguments["digest"]
        )
        place = device.pick(arguments["num_gpus"])
        self._predictor = Predictor(package, place)
        self._thread = ThreadPoolExecutor(1, "model", torch.set_num_threads, (num_threads,))
        self._fit = Fits()
        self._texts = self._engine(arguments) if package.card.is_generative else None
        self._batcher = Batcher(
            self._predict,
            max_batch_size=arguments["max_batch_size"],
            fit=self._fit,
            executor=self._thread,
            call_soon=self._call_soon,
            joining=joining_of(package.card),
            may_run_in_loop=not package.card.is_generative,  # texts are made in the thread
            busy_clock=time.thread_time if place.device.type == "cpu" else None,
        )
        self._asking = Asking(self._batcher, self._call_soon)
        self._thread.submit(self._warm_up, arguments["max_batch_size"]).result()
        garbage.collect_seldom()
        links = arguments["links"]
        self._server, self._address = listening.serve(
            ReplicaHandler(self._predictor, self._batcher, self._texts, self._call_soon),
            bytes.fromhex(links["key"]),
            max_frame_bytes=links["max_frame_bytes"],
        )
        self._call_soon(lambda: torch.set_num_threads(num_threads))

    async def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The card's outputs, or {"refused": why} for values that the model cannot take."""
        from eagleray.errors import InputError

        arrived_s = time.monotonic()
        try:
            self._predictor.check(inputs)
        except InputError as error:
            return {REFUSED: str(error)}
        return await self._asking.submit(inputs, arrived_s=arrived_s)

    async def generate(self, request: GenerationRequest, key: str = "") -> AsyncGenerator[GenerationChunk]:
        """Pieces of text as they come, keys in turns; closed early, it computes no more."""
        from eagleray.errors import InputError
        from eagleray.serving.replica.handler import CLOSED_RETRY_S, FULL_RETRY_S
        from eagleray.serving.replica.texts import QueueClosed, QueueFull
        from eagleray.serving.transport import BadInput, Overloaded

        if self._texts is None:
            raise BadInput("the model does not generate text")
        loop, found = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def take(news: Any) -> None:
            loop.call_soon_threadsafe(found.put_nowait, news)

        handle = None
        try:
            handle = self._texts.submit(request, take, take, key=key)
            while True:
                news = await found.get()
                if isinstance(news, Exception):
                    raise news
                yield news
                if news.finish_reason is not None:
                    return
        except InputError as error:  # in the gateway's words, as a link has frames for them
            raise BadInput(str(error)) from None
        except QueueFull as error:
            raise Overloaded(str(error), FULL_RETRY_S) from None
        except QueueClosed as error:
            raise Overloaded(str(error), CLOSED_RETRY_S) from None
        finally:
            if handle is not None:
                handle.cancel()

    async def record_replica_metadata(self) -> dict[str, Any]:
        """Where gateways reach this replica past Serve; Serve asks by this name, and tells them."""
        from eagleray.serving.replica.listening import METADATA

        return {METADATA: dict(self._address)}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve's controller is to know of this replica; Serve asks by this name."""
        from eagleray.serving import signals

        num_texts = 0 if self._texts is None else self._texts.num_under_way
        return signals.stated(self._batcher, self._fit.overall(), num_texts, time.monotonic())

    async def check_health(self) -> None:
        """Serve asks; a replica that gateways cannot reach any more is replaced."""
        from eagleray.errors import ServiceError

        if not self._server.is_alive:
            raise ServiceError("the replica's link server has ended")
        if self._texts is not None and self._texts.failure is not None:
            raise ServiceError(f"the replica makes no texts any more: {self._texts.failure}")

    def close(self, timeout_s: float = _DRAIN_S - _CLOSE_MARGIN_S) -> None:
        """Take no more over links, and end when what runs there has ended, or after `timeout_s`."""
        self._server.close(timeout_s)
        if self._texts is not None:
            self._texts.close()

    def __del__(self) -> None:
        """Serve asks for it once, when no handle has anything under way."""
        if hasattr(self, "_server"):
            self.close()

    def _predict(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs for inputs that were checked, each by itself."""
        return self._predictor.predict_encoded(self._predictor.encode(inputs))

    def _call_soon(self, work: Callable[[], None]) -> None:
        """Have the link's loop do it; from any thread."""
        self._server.call_soon(work)

    def _engine(self, arguments: Mapping[str, Any]) -> Texts:
        from eagleray.data import ByteTokenizer
        from eagleray.inference.continuous import ContinuousEngine
        from eagleray.serving.replica.texts import Texts

        engine = ContinuousEngine(
            self._predictor.module,
            ByteTokenizer(),
            self._predictor.card.signature.input_shape[0],
            slots=min(_MOST_SLOTS, arguments["max_batch_size"]),
            max_waiting=arguments["max_queued"] + _MOST_SLOTS,
        )
        return Texts(engine, self._thread)

    def _warm_up(self, max_batch_size: int) -> None:
        for size in sorted({1, max_batch_size}):
            self._predictor.warm_up(size)  # the first call pays for more than a pass
            self._fit.seed(size, _pass_s(self._predictor, size))
        if self._texts is not None:
            from eagleray.protocol.generation import GenerationRequest

            self._texts.run(GenerationRequest("a", max_tokens=_WARM_UP_TOKENS))


def _pass_s(predictor: Predictor, size: int) -> float:
    """The quickest of some passes, in seconds."""
    times_s: list[float] = []
    while len(times_s) < _TIMED_PASSES and sum(times_s) < _TIMED_S:
        start_s = time.perf_counter()
        predictor.warm_up(size)
        times_s.append(time.perf_counter() - start_s)
    return min(times_s)
