"""What an ingress says of itself and of what it serves, over its admin API; works without ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from eagleray import __version__
from eagleray.errors import EaglerayError
from eagleray.workflows.claims import of_ingress

if TYPE_CHECKING:
    from eagleray.client import Claims, Client, Service


@dataclass(frozen=True)
class ServingStatus:
    """An ingress as it is now."""

    url: str
    trouble: str
    """Why it does not answer, or not as it should; empty where it does."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Version, cluster, nodes, storage and so on, in its own words; empty where it does not answer."""
    services: tuple[Service, ...] = ()
    claims: Claims | None = None
    """None where nobody could be asked."""

    @property
    def other_version(self) -> str | None:
        """The version of eagleray that serves, where it is not the one installed here."""
        found = self.about.get("version", __version__)
        return None if found == __version__ else str(found)


def look(client: Client) -> ServingStatus:
    """Ask it. Raises: EaglerayError where it does not answer, or not to this key."""
    about = client.admin.status()
    services, claims = tuple(client.admin.services()), of_ingress(client)
    return ServingStatus(client.url, str(about.get("trouble") or ""), about, services, claims)


def try_to_look(client: Client) -> ServingStatus:
    """Ask it; one that does not answer has that as its trouble."""
    try:
        return look(client)
    except EaglerayError as error:
        return ServingStatus(client.url, str(error))


def to_json(found: ServingStatus) -> dict[str, Any]:
    """For programs."""
    return {
        "ingress": {"url": found.url, "trouble": found.trouble, **found.about},
        "services": [asdict(service) for service in found.services],
        "claims": None if found.claims is None else asdict(found.claims),
    }
