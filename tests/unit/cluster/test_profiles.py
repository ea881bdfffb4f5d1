"""Recovery profiles: each is told by its name, and what it takes for dead fits together."""

import os
import subprocess
import sys

import pytest

from eagleray.cluster import profiles
from eagleray.errors import InputError


def dead_after_s(profile) -> tuple[float, float]:
    """Shortest and longest time in which the GCS gives up a node whose network was cut.

    A question is under way at that moment, or one period later; each fails after its time limit.
    """
    period, limit, failures = (
        int(profile.of_ray[f"RAY_health_check_{name}"])
        for name in ("period_ms", "timeout_ms", "failure_threshold")
    )
    shortest = (failures * limit + (failures - 1) * period) / 1000
    return shortest, shortest + period / 1000


@pytest.mark.parametrize(("name", "longest"), [("default", 9.0), ("fast", 4.5), ("lossy", 100.0)])
def test_a_host_ends_its_node_before_the_others_take_it_for_dead(name, longest):
    profile = profiles.named(name)
    earliest, latest = dead_after_s(profile)
    assert latest == longest
    assert profile.fence_s < earliest
    assert profile.heartbeat_s <= latest


def test_every_profile_sets_the_same_things():
    # One that leaves a setting out would keep what an outer shell exported.
    first, *others = profiles.PROFILES.values()
    for other in others:
        assert (first.of_ray.keys(), first.of_serve.keys()) == (other.of_ray.keys(), other.of_serve.keys())


def test_a_cluster_names_its_profile_in_the_environment(monkeypatch):
    monkeypatch.delenv(profiles.VARIABLE, raising=False)
    assert profiles.of_environment().name == "default"
    for name, profile in profiles.PROFILES.items():
        monkeypatch.setenv(profiles.VARIABLE, profile.environment()["EAGLERAY_PROFILE"])
        assert profiles.of_environment() is profiles.named(name)
    monkeypatch.setenv(profiles.VARIABLE, "quick")
    with pytest.raises(InputError, match="'quick'; choose one of default, fast, lossy"):
        profiles.of_environment()


def test_a_shell_takes_a_profile_by_its_name():
    command = (
        f'eval "$({sys.executable} -m eagleray.cluster.profiles fast)"; echo "$RAY_health_check_period_ms"; '
        f"{sys.executable} -m eagleray.cluster.profiles quick"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, check=False)
    assert done.stdout == "500\n"
    assert done.returncode == 1
    assert done.stderr.startswith("error: no recovery profile is called 'quick'")
