"""`MlflowModels`: model versions in MLflow's registry, their packages in storage.

    <storage>/models/<name>/<first 16 of the digest>-<random>/     the package, written first
    MLflow                                                         the version, made last: MLflow numbers it

A publisher that is killed before its version is made leaves a package that nobody refers to, and no more; a
later publisher of the model removes it (`publications.py`). The version says where its package is, and by its
digest what it must be; its metrics and lineage stand in MLflow too, so that a list needs no package.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from eagleray.errors import PackageError
from eagleray.packaging import Folder, ModelVersion, open_package
from eagleray.packaging.model_package import PackedModel
from eagleray.packaging.store import no_such_model
from eagleray.registry.connection import asking, one_at_a_time, open_client
from eagleray.registry.publications import Publications
from eagleray.specs import Lineage, ModelCard
from eagleray.specs.model_ref import Ref, check_alias, check_name, pick

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)

_URL, _DIGEST = "eagleray.url", "eagleray.digest"
_METRICS, _LINEAGE = "eagleray.metrics", "eagleray.lineage"
_EVALUATION = "eagleray.evaluation"
_RUN = "eagleray.run"
"""The tag by which a run of ours is found in MLflow (workflows/run.py)."""
_PAGE = 1000


class MlflowModels:
    """A `ModelStore`. Versions in MLflow that others made, without our tags, are not seen."""

    def __init__(self, tracking_uri: str, storage_url: str) -> None:
        """A store that has done nothing yet; MLflow is imported by the first call.

        Args:
            tracking_uri: `sqlite:///<file>` or a server's address.
            storage_url: Folder or fsspec URL that takes the packages.
        """
        self._uri = tracking_uri
        self._folder = Folder(storage_url).child("models")

    def publish(
        self,
        card: ModelCard,
        weights: Mapping[str, Tensor],
        code: Folder | None = None,
        *,
        aliases: Sequence[str] = (),
    ) -> ModelVersion:
        """As `ModelStore.publish`."""
        check_name(card.name)
        for alias in aliases:
            check_alias(alias)
        with asking(self._uri):
            self._register(card.name)  # first: a server that is away leaves no package behind
        packed = PackedModel.of(card, weights, code)
        digest = packed.manifest.digest
        # Never a folder that another publisher of the same package writes at this moment.
        name = f"{digest[:16]}-{secrets.token_hex(4)}"
        publications = Publications(self._folder.child(card.name), self._uri)
        folder = self._write(packed, name, publications)
        with asking(self._uri):
            version = self._create(card, folder.url, digest)
            for alias in aliases:
                self._client.set_registered_model_alias(card.name, alias, str(version))
        versions = self.versions(card.name)
        self._clean_up(name, publications, versions)
        return pick(Ref(card.name, version), versions)

    def _write(self, packed: PackedModel, name: str, publications: Publications) -> Folder:
        """The package's folder, once it is whole. Raises: PackageError; nothing is left then."""
        try:
            folder = publications.begin(name)
        except OSError as error:
            raise packed.unwritable(publications.folder.url, error) from error
        try:
            packed.write(folder)
        except PackageError:
            with contextlib.suppress(OSError):
                publications.end(name)
            raise
        # A machine that slept in between for longer than publications.ABANDONED_S may have lost files.
        open_package(folder.url, allow_code=True, digest=packed.manifest.digest)
        return folder

    def _clean_up(self, name: str, publications: Publications, versions: Sequence[ModelVersion]) -> None:
        """Remove what killed publishers left; a storage that refuses is no reason to fail."""
        known = {version.url.rpartition("/")[2] for version in versions}
        try:
            publications.clean(name, known)
            publications.end(name)
        except OSError as error:
            where = publications.folder.url
            _log.warning("what killed publishers left in %s cannot be removed: %s", where, error)

    def versions(self, name: str) -> list[ModelVersion]:
        """As `ModelStore.versions`."""
        check_name(name)
        with asking(self._uri):
            model = self._registered(name)
            found = [] if model is None else self._versions(model)
        if not found:
            raise no_such_model(name, self.names())
        return found

    def names(self) -> list[str]:
        """As `ModelStore.names`."""
        with asking(self._uri):
            versions = _all(self._client.search_model_versions, "")
        return sorted({version.name for version in versions if _is_ours(version)})

    def resolve(self, ref: str) -> ModelVersion:
        """As `ModelStore.resolve`."""
        wanted = Ref.parse(ref)
        return pick(wanted, self.versions(wanted.name))

    def promote(self, name: str, version: int, alias: str) -> None:
        """As `ModelStore.promote`."""
        check_alias(alias)
        pick(Ref(name, version), self.versions(name))
        with asking(self._uri):
            self._client.set_registered_model_alias(name, alias, str(version))

    def add_metrics(self, version: ModelVersion, metrics: Mapping[str, float], *, evaluation: str) -> None:
        """Lay what an evaluation found over the metrics of a version, which has a tag with its id then.

        Raises: ServiceError where MLflow does not answer.
        """
        tags = {_METRICS: json.dumps({**version.metrics, **metrics}), _EVALUATION: evaluation}
        with asking(self._uri):
            for name, value in tags.items():
                self._client.set_model_version_tag(version.name, str(version.version), name, value)

    @cached_property
    def _client(self) -> Any:
        return open_client(self._uri)

    def _register(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        if self._registered(name) is not None:
            return
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another publisher was quicker
                raise

    def _create(self, card: ModelCard, url: str, digest: str) -> int:
        with one_at_a_time(self._uri):  # MLflow counts up, and gives up when others were quicker three times
            made = self._client.create_model_version(
                card.name,
                self._source(url),
                run_id=self._mlflow_run(card.lineage.run_id),
                tags={
                    _URL: url,
                    _DIGEST: digest,
                    _METRICS: json.dumps(card.metrics),
                    _LINEAGE: card.lineage.model_dump_json(exclude_none=True),
                },
                description=_description(card),
            )
        return int(made.version)

    def _source(self, url: str) -> str:
        """The package's address as MLflow takes it; `_URL` has the real one.

        A server refuses paths: it takes them for its own, and looks whether they hold a link.
        """
        is_server = self._uri.startswith(("http://", "https://"))
        if is_server and "://" not in url:
            return f"eagleray://models{url.removeprefix(self._folder.url)}"
        return url

    def _mlflow_run(self, run_id: str) -> str | None:
        """MLflow's own id of our run, which links the version to it; None where MLflow has no such run."""
        experiments = [experiment.experiment_id for experiment in self._client.search_experiments()]
        quoted = run_id.replace("'", "")
        found = self._client.search_runs(experiments, f"tags.`{_RUN}` = '{quoted}'", max_results=1)
        return found[0].info.run_id if found else None

    def _registered(self, name: str) -> Any:
        """MLflow's registered model; None where there is none."""
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def _versions(self, model: Any) -> list[ModelVersion]:
        aliases: dict[int, list[str]] = {}
        for alias, version in model.aliases.items():
            aliases.setdefault(int(version), []).append(alias)
        found = filter(_is_ours, _all(self._client.search_model_versions, f"name = '{model.name}'"))
        return sorted(
            (_version(entity, aliases.get(int(entity.version), [])) for entity in found),
            key=lambda version: version.version,
        )


def _is_ours(version: Any) -> bool:
    return {_URL, _DIGEST, _LINEAGE} <= set(version.tags)


def _version(entity: Any, aliases: Sequence[str]) -> ModelVersion:
    return ModelVersion(
        name=entity.name,
        version=int(entity.version),
        url=entity.tags[_URL],
        digest=entity.tags[_DIGEST],
        aliases=tuple(sorted(aliases)),
        metrics=json.loads(entity.tags.get(_METRICS, "{}")),
        lineage=Lineage.model_validate_json(entity.tags[_LINEAGE]),
        created_at=entity.creation_timestamp / 1000,
    )


def _all(search: Any, query: str) -> list[Any]:
    """Every page of a search."""
    found, token = [], None
    while True:
        page = search(query, max_results=_PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _description(card: ModelCard) -> str:
    """The version's page in MLflow, as Markdown: metrics and where it comes from."""
    architecture = card.architecture
    kind = architecture.spec.kind if architecture.is_registered else architecture.function
    lineage = card.lineage.model_dump(exclude_none=True, exclude={"created_at"})
    rows = [f"| {name} | {value:.6g} |" for name, value in card.metrics.items()]
    rows += [f"| {name} | {_plain(value)} |" for name, value in lineage.items() if value != ()]
    return "\n".join(
        [
            f"`{kind}`, {card.signature.input_kind} → {card.signature.target_kind}",
            "",
            "| | |",
            "|---|---|",
            *rows,
        ]
    )


def _plain(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)
