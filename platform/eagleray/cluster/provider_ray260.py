"""Our node provider under Ray's autoscaler v2: each node is a process group on this machine.

Ray's monitor process imports it (`provider: {type: external}`). All its state is on disk: the monitor may be
killed and started again at any time. For Ray 2.60, whose v2 autoscaler drives providers by the v1 interface.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from eagleray.cluster import gpus, nodes, processes, state
from eagleray.cluster.node_types import HEAD
from eagleray.errors import ClusterError

_TERMINATION_S = 10.0
_log = logging.getLogger(__name__)


class LocalNodeProvider(NodeProvider):
    """Starts, lists and ends the worker nodes of one local cluster."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        found = state.read_path(Path(provider_config["directory"]))
        assert found is not None, f"no cluster state in {provider_config['directory']}"
        self.cluster = found
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        # Ray launches batches of nodes from several threads: held for both dicts, and while a node's file is
        # read and written again.
        self._lock = threading.Lock()
        self._held_gpus = {
            node.node_id: list(node.options.get("gpus", ())) for node in nodes.read_all(found.nodes_dir)
        }
        # Two warnings a tick about fields that Ray's own defaults bring (2.60).
        logging.getLogger("ray.autoscaler._private.util").setLevel(logging.ERROR)

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """Ids of the nodes that run and have these tags; the head is one, or v2 never scales up."""
        self._reap()
        wanted = tag_filters.items()
        alive = [node.node_id for node in self._live_nodes() if wanted <= node.tags.items()]
        return alive + ([HEAD] if wanted <= self.node_tags(HEAD).items() else [])

    def _live_nodes(self) -> list[nodes.Node]:
        """Nodes that run; what the ended ones left is cleaned up."""
        live = []
        for node in nodes.read_all(self.cluster.nodes_dir):
            if not node.has_process:
                self._forget(node)
            elif not node.terminated_s:
                live.append(node)
            elif node.process and time.time() - node.terminated_s > _TERMINATION_S:
                processes.send(node.process, signal.SIGKILL)  # the kernel ends the rest of the node with it
        return live

    def _forget(self, node: nodes.Node) -> None:
        """Release an ended node's GPUs and clean up after it; what cannot be deleted yet is tried again."""
        with self._lock:
            self._held_gpus.pop(node.node_id, None)
        try:
            nodes.forget(self.cluster.nodes_dir, self.cluster.logs_dir, node)
        except ClusterError as error:  # raised here, it would end the autoscaler's whole update
            _log.warning("node %s has ended, but %s; trying again at the next update", node.node_id, error)

    def _reap(self) -> None:
        """Take the exit status of ended nodes, or they would stay zombies."""
        with self._lock:
            for node_id, process in list(self._started.items()):
                if process.poll() is not None:
                    self._started.pop(node_id)

    def _node(self, node_id: str) -> nodes.Node | None:
        return nodes.read(nodes.path_of(self.cluster.nodes_dir, node_id))

    def _write(self, node: nodes.Node) -> None:
        nodes.write(nodes.path_of(self.cluster.nodes_dir, node.node_id), node)

    def node_tags(self, node_id: str) -> dict[str, str]:
        """Tags of a node; none for one that is gone."""
        if node_id == HEAD:
            return {
                TAG_RAY_NODE_KIND: NODE_KIND_HEAD,
                TAG_RAY_USER_NODE_TYPE: HEAD,
                TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
            }
        node = self._node(node_id)
        return dict(node.tags) if node else {}

    def is_running(self, node_id: str) -> bool:
        """Whether the node's process runs."""
        node = self._node(node_id)
        return node_id == HEAD or (node is not None and node.is_alive)

    def is_terminated(self, node_id: str) -> bool:
        """Whether the node's process has ended or was asked to."""
        return not self.is_running(node_id)

    def external_ip(self, node_id: str) -> str:
        """The host's address: every node is on it."""
        return self.cluster.host

    internal_ip = external_ip

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        """Lay `tags` over the node's own."""
        with self._lock:
            nodes.retag(self.cluster.nodes_dir, node_id, tags)

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> None:
        """Never called by v2, which always knows resources and labels."""
        self.create_node_with_resources_and_labels(node_config, tags, count, {}, {})

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        """Start `count` nodes of the type that the tags name."""
        for _ in range(count):
            self._start(node_config, tags, resources, labels)

    def _start(
        self,
        options: Mapping[str, Any],
        tags: Mapping[str, str],
        resources: Mapping[str, float],
        labels: Mapping[str, str],
    ) -> None:
        """Start one node and write it down; its tags carry the launch request that v2 waits for."""
        node_id = f"n{uuid.uuid4().hex[:6]}"
        real, num_gpus = gpus.real_gpus(), int(resources.get("GPU", 0))
        with self._lock:
            chosen = gpus.choose(real, num_gpus, self._held_gpus.values())
            self._held_gpus[node_id] = chosen
        node = nodes.Node(
            node_id=node_id,
            node_type=tags[TAG_RAY_USER_NODE_TYPE],
            resources=resources,
            labels=labels,
            tags=tags,
            temp_dir=str(self.cluster.runtime_dir / node_id),
            options={**options, "gpus": chosen},
            gcs_address=self.cluster.gcs_address,
            created_s=time.time(),
        )
        plan = nodes.plan_of(self.cluster.nodes_dir, node_id)
        nodes.write(plan, node)
        environment = {
            **os.environ,
            **gpus.environment(real, chosen, num_gpus),
            "RAY_CLOUD_INSTANCE_ID": node_id,
            "RAY_NODE_TYPE_NAME": node.node_type,
        }
        with (self.cluster.logs_dir / f"{node_id}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "eagleray.cluster.node_main_ray260", str(plan)],
                env=environment,
                cwd=self.cluster.runtime_dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        with self._lock:
            self._started[node_id] = process
        self._write(replace(node, process=processes.of(process.pid, node.node_type)))
        _log.info("started node %s (%s), pid %s", node_id, node.node_type, process.pid)

    def terminate_node(self, node_id: str) -> None:
        """Ask a node to end; a no-op for unknown ids, which v2 asks for after its own restart."""
        with self._lock:
            node = self._node(node_id)
            if node and node.process:
                self._write(replace(node, terminated_s=time.time()))
        if node and node.process:
            processes.send(node.process, signal.SIGTERM)

    def terminate_nodes(self, node_ids: list[str]) -> None:
        """Ask several nodes to end."""
        for node_id in node_ids:
            self.terminate_node(node_id)
