"""The SDK: what an application or a script needs to reach a cluster, without ray or torch.

    from eagleray.client import Client

    with Client("http://127.0.0.1:8000") as client:
        print(client.predict("digits", images).labels)

Names are loaded when they are first used: `import eagleray.client` alone loads neither numpy nor httpx.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eagleray.client.admin import Admin
    from eagleray.client.aio import AsyncAdmin, AsyncClient, AsyncTextStream
    from eagleray.client.claims import Claim, ClaimedNode, ClaimNotice, Claims, ClaimWait
    from eagleray.client.errors import BusyError, NoAnswerError, TookTooLongError
    from eagleray.client.jobs import Job, JobClient, NoJobError
    from eagleray.client.outcome import JobResult
    from eagleray.client.package import Package, pack
    from eagleray.client.results import (
        ApiKey,
        DeployedVersion,
        Gateways,
        Generation,
        Model,
        Prediction,
        RegisteredModel,
        RegisteredVersion,
        Run,
        Service,
        Tensor,
    )
    from eagleray.client.submission import (
        submit_publish,
        submit_resume,
        submit_spec,
        submit_tune_resume,
    )
    from eagleray.client.sync import Client, TextStream
    from eagleray.protocol.key_terms import KeyTerms

_HOME = {
    "admin": ("Admin",),
    "aio": ("AsyncAdmin", "AsyncClient", "AsyncTextStream"),
    "claims": ("Claim", "ClaimNotice", "ClaimWait", "ClaimedNode", "Claims"),
    "errors": ("BusyError", "NoAnswerError", "TookTooLongError"),
    "jobs": ("Job", "JobClient", "NoJobError"),
    "outcome": ("JobResult",),
    "package": ("Package", "pack"),
    "results": (
        "ApiKey",
        "DeployedVersion",
        "Gateways",
        "Generation",
        "KeyTerms",
        "Model",
        "Prediction",
        "RegisteredModel",
        "RegisteredVersion",
        "Run",
        "Service",
        "Tensor",
    ),
    "submission": (
        "submit_publish",
        "submit_resume",
        "submit_spec",
        "submit_tune_resume",
    ),
    "sync": ("Client", "TextStream"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Admin",
    "ApiKey",
    "AsyncAdmin",
    "AsyncClient",
    "AsyncTextStream",
    "BusyError",
    "Claim",
    "ClaimNotice",
    "ClaimWait",
    "ClaimedNode",
    "Claims",
    "Client",
    "DeployedVersion",
    "Gateways",
    "Generation",
    "Job",
    "JobClient",
    "JobResult",
    "KeyTerms",
    "Model",
    "NoAnswerError",
    "NoJobError",
    "Package",
    "Prediction",
    "RegisteredModel",
    "RegisteredVersion",
    "Run",
    "Service",
    "Tensor",
    "TextStream",
    "TookTooLongError",
    "pack",
    "submit_publish",
    "submit_resume",
    "submit_spec",
    "submit_tune_resume",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_MODULE[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
