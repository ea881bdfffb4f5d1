"""Serve's autoscaling policy of a model deployment. Pickled by value: there is next to nothing in it."""

from __future__ import annotations

from typing import Any

POLICY = "eagleray.serving.scaling_policy:ServiceScaling"


class ServiceScaling:
    """Made in Serve's controller, from its keyword arguments alone; it remembers nothing else."""

    def __init__(self, **terms: Any) -> None:
        self._terms = terms
        from contextlib import suppress

        with suppress(Exception):  # the first call says what is wrong
            from eagleray.serving.scaling import prepare

            prepare()

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """So many replicas, and what to hand back at the next call. Never raises, never blocks.

        An exception would keep Serve's controller from seeing to any application, whoever deployed it.
        """
        try:
            from eagleray.serving.scaling import num_replicas

            return num_replicas(context, **self._terms)
        except Exception:
            import logging

            from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy

            if not context.policy_state.get("has_failed"):  # it is called ten times a second
                logging.getLogger("ray.serve").exception("%s: scaled without the ledger", context.app_name)
            found, _ = replica_queue_length_autoscaling_policy(context)
            return found, {"has_failed": True}
