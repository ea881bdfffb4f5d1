"""`Search`: the identity and the folder of a search.

`<storage>/searches/<id>/`:

    spec.json        the resolved spec
    trials/          one small file per trial: values, state, node, seconds; what a resume knows of it
    drivers/         whose search it is (`lock`)
    trials.parquet   the table of all trials    } written at the end, also of a stopped
    history.png      the optimisation history   } or failed search
    report.json      the best trial and its run }

Each trial is a run of its own in `<storage>/runs/<id>-001/`, and so on.
"""

from __future__ import annotations

from dataclasses import dataclass

from eagleray.cluster import settings
from eagleray.errors import InputError, SpecError
from eagleray.packaging import Folder
from eagleray.specs import TuneSpec, validate
from eagleray.tuning import Trial
from eagleray.tuning.record import read_evaluations
from eagleray.workflows.run import new_id, runs


@dataclass(frozen=True)
class Search:
    """A search's identity and place."""

    search_id: str
    spec: TuneSpec
    folder: Folder

    @classmethod
    def create(cls, spec: TuneSpec) -> Search:
        """A new search, its folder made, the resolved spec saved in it."""
        search_id = new_id(spec.name)
        search = cls(search_id, spec, searches().child(search_id))
        search.folder.write_json("spec.json", spec.model_dump(mode="json"))
        return search

    @classmethod
    def open(cls, search_id: str) -> Search:
        """An earlier search that may go on. Raises: InputError: there is none of that id, or it is over."""
        folder = searches().child(search_id)
        if "/" in search_id or not folder.exists("spec.json"):
            stem = search_id.partition("-")[0]
            known = [name for name in searches().list() if name.startswith(stem)][-5:]
            hint = f"; searches like it: {', '.join(known)}" if known else ""
            raise InputError(f"no search {search_id!r} in {searches().url}{hint}")
        if folder.exists("report.json") and folder.read_json("report.json")["status"] != "STOPPED":
            raise InputError(
                f"search {search_id} is over; its results are in {folder.url}. To try more, start a new one"
            )
        name = f"{folder.url}/spec.json"
        try:
            table = folder.read_json("spec.json")
        except ValueError as error:
            raise SpecError(f"{name}: not JSON: {error}; the search cannot go on without it") from error
        return cls(search_id, validate(TuneSpec, table, name=name), folder)

    def trials(self) -> list[Trial]:
        """What earlier drivers have tried, in order; what still ran when they were killed waits again."""
        kept = self.folder.child("trials")
        found = []
        for name in (name for name in kept.list() if not name.startswith(".")):
            trial = Trial.from_json(kept.read_json(name))
            trial.evaluations = read_evaluations(runs().child(trial.run_id))
            if not trial.is_over:
                trial.state, trial.nodes = "waiting", []
            found.append(trial)
        return found


def searches() -> Folder:
    """The folder of all searches."""
    return Folder(settings.storage_url()).child("searches")
