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

    from eagleray.protocol.generation import GenerationChunk, GenerationRequest
    from eagleray.serving.services import ServedVersion
    from eagleray.specs import ServiceSpec

DEPLOYMENT = "Model"
REFUSED = "refused"
"""Key of an answer that is no outputs: the values were wrong, and this says how."""
_STARTS = 1
"""Tries of the first replica. The controller tries again, but not what would go wrong again."""
_DRAIN_S = 60.0
_WARM_UP_TOKENS = 2


def app_of(served: ServedVersion) -> App:
    """The application that serves the version."""
    arguments = arguments_of(served.spec, served.url, served.digest)
    return App(served.app, build(served.spec, arguments), served.restart_fingerprint)


def arguments_of(spec: ServiceSpec, url: str, digest: str | None) -> dict[str, Any]:
    """What a ModelReplica is made from: plain values."""
    return {
        "url": url,
        "digest": digest,
        "allow_code": spec.allow_code,
        "max_batch_size": spec.max_batch_size,
        "num_threads": max(1, math.floor(spec.cpus_per_replica)),
        "num_gpus": math.ceil(spec.gpus_per_replica),
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
    """Loads one package, and answers for it. What takes long is computed in a thread, off the event loop."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """Load the package and run it once. Raises: PackageError where it does not verify."""
        from eagleray.cluster.loopback_ray260 import keep_replica_to_node_address

        keep_replica_to_node_address()
        import torch

        from eagleray import device
        from eagleray.inference import Predictor
        from eagleray.packaging import open_package
        from eagleray.serving.replica.asking import Asking
        from eagleray.serving.replica.batcher import Batcher
        from eagleray.serving.replica.fit import Fits
        from eagleray.serving.replica.joining import joining_of

        torch.set_num_threads(arguments["num_threads"])  # for this thread, which is the loop's, alone
        package = open_package(
            arguments["url"], allow_code=arguments["allow_code"], digest=arguments["digest"]
        )
        place = device.pick(arguments["num_gpus"])
        self._predictor = Predictor(package, place)
        self._thread = ThreadPoolExecutor(1, "model", torch.set_num_threads, (arguments["num_threads"],))
        self._fit = Fits()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._num_texts = 0
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

    async def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The card's outputs, or {"refused": why} for values that the model cannot take."""
        from eagleray.errors import InputError

        arrived_s = time.monotonic()
        try:
            self._predictor.check(inputs)
        except InputError as error:
            return {REFUSED: str(error)}
        self._loop = asyncio.get_running_loop()
        return await self._asking.submit(inputs, arrived_s=arrived_s)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationChunk]:
        """Pieces of text as they come. Several requests take turns; closed early, it computes no more."""
        pieces = self._pieces(request)
        loop = asyncio.get_running_loop()
        self._num_texts += 1
        try:
            while (piece := await loop.run_in_executor(self._thread, next, pieces, None)) is not None:
                yield piece
        finally:
            self._num_texts -= 1
            self._thread.submit(pieces.close)  # behind the piece that is being computed

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve's controller is to know of this replica; Serve asks by this name."""
        from eagleray.serving import signals

        return signals.stated(self._batcher, self._fit.overall(), self._num_texts, time.monotonic())

    def _predict(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs for inputs that were checked, each by itself."""
        return self._predictor.predict_encoded(self._predictor.encode(inputs))

    def _call_soon(self, work: Callable[[], None]) -> None:
        """Have the loop of the requests do it; from any thread."""
        assert self._loop is not None  # a request has come
        self._loop.call_soon_threadsafe(work)

    def _pieces(self, request: GenerationRequest) -> Any:
        from eagleray.data import ByteTokenizer
        from eagleray.inference.generation import generate

        context = self._predictor.card.signature.input_shape[0]
        return generate(self._predictor.module, ByteTokenizer(), request, context=context)

    def _warm_up(self, max_batch_size: int) -> None:
        for size in sorted({1, max_batch_size}):
            self._predictor.warm_up(size)
            start_s = time.perf_counter()
            self._predictor.warm_up(size)  # the first call pays for more than a pass
            self._fit.seed(size, time.perf_counter() - start_s)
        if self._predictor.card.is_generative:
            from eagleray.protocol.generation import GenerationRequest

            for _ in self._pieces(GenerationRequest("a", max_tokens=_WARM_UP_TOKENS)):
                pass
