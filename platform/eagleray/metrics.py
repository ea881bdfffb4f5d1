"""One table of every metric: name, kind, unit, labels, meaning. Dashboards and docs are made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Metric:
    """A row of a table; `name` ends with its unit."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: Literal["", "seconds", "bytes", "samples", "steps", "nodes", "ratio", "workers"]
    labels: tuple[str, ...]
    meaning: str


_RUN = ("run",)
_BUCKET = (*_RUN, "bucket")

TABLE: tuple[Metric, ...] = (
    Metric("eagleray_train_loss", "gauge", "", _RUN, "Training loss of the last reported step."),
    Metric("eagleray_train_validation_loss", "gauge", "", _RUN, "Loss on the validation part."),
    Metric("eagleray_train_validation_accuracy", "gauge", "ratio", _RUN, "Accuracy on the validation part."),
    Metric("eagleray_train_learning_rate", "gauge", "", _RUN, "Learning rate of the last reported step."),
    Metric("eagleray_train_samples_per_second", "gauge", "samples", _RUN, "Samples trained per second."),
    Metric("eagleray_train_step_seconds", "gauge", "seconds", _RUN, "Mean time of a step since the last report."),
    Metric("eagleray_train_steps_total", "counter", "steps", _RUN, "Steps taken, steps redone included."),
    Metric("eagleray_train_skipped_steps_total", "counter", "steps", _RUN,
           "Of these, steps that all ranks skipped, because a gradient was not finite."),
    Metric("eagleray_train_samples_total", "counter", "samples", _RUN, "Samples consumed, redone included."),
    Metric("eagleray_train_sent_bytes_total", "counter", "bytes", _RUN,
           "Gradient bytes handed to the network, headers included, over all ranks."),
    Metric("eagleray_train_payload_bytes_total", "counter", "bytes", _RUN,
           "The same without headers."),
    Metric("eagleray_train_uncompressed_bytes_total", "counter", "bytes", _RUN,
           "Gradient bytes that would have been sent uncompressed, over all ranks."),
    Metric("eagleray_train_probe_bytes_total", "counter", "bytes", _RUN,
           "Sent to measure the network for compression auto, over all ranks; not in the sent bytes."),
    Metric("eagleray_train_state_bytes_total", "counter", "bytes", _RUN,
           "Sent so that a checkpoint has what compression still owes, over all ranks; not in the sent bytes."),
    Metric("eagleray_train_relative_error", "gauge", "ratio", _RUN,
           "What compression has not sent yet over what was to be sent: norms, last sampled step, mean of the ranks."),
    Metric("eagleray_train_codec_seconds_total", "counter", "seconds", _RUN,
           "Time in which a rank's engine encodes and decodes, mean of the ranks."),
    Metric("eagleray_train_exchange_seconds_total", "counter", "seconds", _RUN,
           "Time in which a rank's engine waits for the network, mean of the ranks."),
    Metric("eagleray_train_link_bytes_per_second", "gauge", "bytes", _RUN,
           "Gradient bytes that a rank sends per second of training, mean of the ranks."),
    Metric("eagleray_train_bucket_sent_bytes", "gauge", "bytes", _BUCKET,
           "Bytes that a rank hands to the network for one bucket of a step, headers included, mean since it formed "
           "with the others. The first 16 buckets of the backward pass have numbers of their own, by their place "
           "in it; the others are `rest`. Like what follows by bucket: of rank 0, at each checkpoint."),
    Metric("eagleray_train_bucket_payload_bytes", "gauge", "bytes", _BUCKET, "The same without headers."),
    Metric("eagleray_train_bucket_ratio", "gauge", "", _BUCKET,
           "Uncompressed bytes over sent bytes of the bucket."),
    Metric("eagleray_train_bucket_relative_error", "gauge", "ratio", _BUCKET,
           "What compression has not sent yet of the bucket over what was to be sent; of `rest` the largest."),
    Metric("eagleray_train_bucket_codec_seconds", "gauge", "seconds", _BUCKET,
           "Time of one step in which the engine encodes and decodes the bucket."),
    Metric("eagleray_train_bucket_exchange_seconds", "gauge", "seconds", _BUCKET,
           "Time of one step in which the engine waits for the network with the bucket."),
    Metric("eagleray_train_bucket_link_bytes_per_second", "gauge", "bytes", _BUCKET,
           "Bytes of the bucket that a rank sends per second of training."),
    Metric("eagleray_train_workers", "gauge", "workers", _RUN, "World size of the run."),
    Metric("eagleray_train_nodes", "gauge", "nodes", _RUN, "Nodes that the run's workers are on."),
    Metric("eagleray_train_checkpoint_seconds", "gauge", "seconds", _RUN, "Time of the last checkpoint commit."),
    Metric("eagleray_train_recoveries_total", "counter", "", _RUN, "Times the run went on after losing a worker."),
    Metric("eagleray_train_lost_residuals_total", "counter", "workers", _RUN,
           "Workers that were lost while compression still owed something of theirs, which went with them."),
    Metric("eagleray_train_redone_steps_total", "counter", "steps", _RUN, "Steps trained again after a loss."),
    Metric("eagleray_goodput_ratio", "gauge", "ratio", _RUN,
           "Time of steps that were trained for the first time over the time since the run's submission."),
    Metric("eagleray_lost_seconds", "gauge", "seconds", (*_RUN, "cause"),
           "Time lost since the run's submission, by cause: start, wait, detect, reschedule, restore, redo, checkpoint."),
)  # fmt: skip

"""What goes through Ray's exporter, which puts `ray_` before the name."""

_VERSION = ("model", "version")
_ROUTE = ("route", *_VERSION)

INGRESS_TABLE: tuple[Metric, ...] = (
    Metric("eagleray_ingress_requests_total", "counter", "", (*_ROUTE, "code"), "Requests answered."),
    Metric("eagleray_ingress_seconds", "histogram", "seconds", _ROUTE,
           "From a request's arrival to the last byte of its answer."),
    Metric("eagleray_ingress_part_seconds", "histogram", "seconds", (*_VERSION, "part"),
           "What requests to a version spent their time on: the parts of Server-Timing."),
    Metric("eagleray_ingress_in_flight", "gauge", "", (), "Requests that are being answered now."),
    Metric("eagleray_ingress_received_bytes_total", "counter", "bytes", _ROUTE, "Bytes of request bodies."),
    Metric("eagleray_ingress_sent_bytes_total", "counter", "bytes", _ROUTE, "Bytes of answers' bodies."),
    Metric("eagleray_ingress_way_total", "counter", "", (*_VERSION, "way"),
           "Requests handed to replicas: by `link`, or by `serve`'s handles where no link could carry them."),
    Metric("eagleray_ingress_lane_total", "counter", "", _VERSION,
           "Of those by `link`, the requests that took the fast lane."),
    Metric("eagleray_ingress_cache_requests_total", "counter", "", (*_VERSION, "result"),
           "Requests to versions with `cache_mib`: `hit`, the answer was kept; `shared`, another request's was "
           "waited for; `miss`, a replica was asked; `bypassed`, it was, for the client's Cache-Control wanted that."),
    Metric("eagleray_ingress_cache_bytes", "gauge", "bytes", _VERSION,
           "Answers that are kept, what it takes to keep them included."),
)  # fmt: skip
"""What the ingress itself answers under /metrics, without a prefix."""

BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in TABLE}


class Emitter(Protocol):
    """Sends values of the table's metrics somewhere; a name or label outside the table is our bug."""

    def set(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Set a gauge."""
        ...

    def add(self, name: str, amount: float, labels: Mapping[str, str]) -> None:
        """Raise a counter by `amount` >= 0."""
        ...


class NullEmitter:
    """Sends nothing: the plain case, for runs outside a cluster."""

    def set(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Check the name and labels, send nothing."""
        check(name, "gauge", labels)

    def add(self, name: str, amount: float, labels: Mapping[str, str]) -> None:
        """Check the name and labels, send nothing."""
        check(name, "counter", labels)


def check(name: str, kind: str, labels: Mapping[str, str]) -> Metric:
    """The table's row. Raises: KeyError or AssertionError where name, kind or labels are not the table's."""
    metric = BY_NAME[name]
    assert metric.kind == kind, f"{name} is a {metric.kind}"
    assert set(labels) == set(metric.labels), f"{name} has labels {metric.labels}, not {tuple(labels)}"
    return metric
