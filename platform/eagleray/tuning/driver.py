"""The driver's side of a search: Ray Tune runs the trials, and everything that is kept is ours.

Ray Tune's own state is thrown away at the end. What a later driver needs lies in each trial's run folder
(checkpoints, evaluations) and in the search's record of its trials, so a search can be taken up again after
any kind of death, on another version of Ray too.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from eagleray.specs import TuneSpec
from eagleray.tuning.record import Trial
from eagleray.tuning.room import Room
from eagleray.tuning.running import RunningSearch, SearchObserver, StopRequest
from eagleray.tuning.search import Suggester

SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a CSV, a JSON and a TensorBoard file per trial
    "RAY_AIR_NEW_OUTPUT": "0",  # prints a banner whatever the verbosity; the old one is silent when asked
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the observer says it in one line
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # its state is not used
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "10",
}


def run_search(
    spec: TuneSpec,
    trials: list[Trial],
    *,
    suggester: Suggester,
    observer: SearchObserver,
    num_concurrent: int,
    room: Room,
    stop: StopRequest,
    scratch: Path,
) -> None:
    """Run the trials that are left.

    Args:
        spec: the search.
        trials: those of earlier drivers; holds all of them afterwards, each in the state it ended in.
        suggester: knows nothing of `trials` yet.
        observer: hears what happens.
        num_concurrent: trials at once, at most.
        room: where they may run; as many at once as find a seat in it.
        stop: looked at a few times a second; a reason of the search's own is put there (the time budget, or
            that all trials fail).
        scratch: folder for Ray Tune's own files.
    """
    for name, value in SETTINGS.items():
        os.environ[name] = value
    from ray import tune

    from eagleray.tuning import controller_ray260
    from eagleray.tuning.tune_parts_ray260 import (
        Judge,
        Stopper,
        Suggesting,
        Telling,
        make_scheduler,
        resources,
    )

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    logging.getLogger("ray.air").setLevel(logging.CRITICAL)
    search = RunningSearch(
        spec,
        trials,
        suggester=suggester,
        observer=observer,
        stop=stop,
        room=room,
        num_concurrent=num_concurrent,
    )
    tuner = tune.Tuner(
        tune.with_resources(*resources(spec.scaling, room.claim)),
        tune_config=tune.TuneConfig(
            search_alg=Suggesting(search),
            scheduler=Judge(search, make_scheduler(spec)),
            num_samples=-1,
            max_concurrent_trials=num_concurrent,
            reuse_actors=may_reuse_actors(spec),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            verbose=0,
            callbacks=[Telling(search)],
            stop=Stopper(search),
            failure_config=tune.FailureConfig(max_failures=spec.scaling.max_failures),
        ),
    )
    try:
        with controller_ray260.in_place():
            tuner.fit()
    except KeyboardInterrupt:
        stop.reason = "signal"
    finally:
        search.close()


def may_reuse_actors(spec: TuneSpec) -> bool:
    """Whether the next trial may run in the process of an ended one, which has imported torch already.

    Not where code of the user's own may leave something behind in it, and not for trials of several workers:
    those of an ended one must go at once.
    """
    table = spec.trial_table({})
    has_own_code = bool(table.get("code")) or "module" in (
        table["model"].get("kind"),
        table["data"].get("kind"),
    )
    return spec.scaling.num_workers == 1 and not has_own_code
