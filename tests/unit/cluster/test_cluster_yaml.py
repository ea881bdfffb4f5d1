"""cluster.yaml is a launcher file that Ray accepts, and what AWS would be asked for is what it says."""

import copy
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import botocore.endpoint
import pytest
import yaml
from ray.autoscaler._private.aws import config as aws_config
from ray.autoscaler._private.aws import utils as aws_utils
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.command_runner import _with_interactive
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import NODE_KIND_WORKER, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from eagleray.cluster import profiles, ray_start_ray260

FILE = Path(__file__).parents[3] / "cluster.yaml"
WORKERS = {"cpu_worker": ("cpu", 8), "train_gpu": ("train", 8), "serve_gpu": ("serve", 4)}
SUBNET = {
    "SubnetId": "subnet-1", "VpcId": "vpc-1", "State": "available", "MapPublicIpOnLaunch": True,
    "AvailabilityZone": "us-west-2a",
}  # fmt: skip
GROUP = {"GroupId": "sg-1", "GroupName": "ray-autoscaler-eagleray", "VpcId": "vpc-1", "IpPermissions": []}
ANSWERS = {
    "GetInstanceProfile": {
        "InstanceProfile": {
            "InstanceProfileName": "ray-autoscaler-v1", "Arn": "arn:test:profile",
            "Roles": [{"RoleName": "ray-autoscaler-v1", "Arn": "arn:test:role"}],
        }
    },
    "DescribeSubnets": {"Subnets": [SUBNET]},
    "AuthorizeSecurityGroupIngress": {"Return": True},
    "DescribeInstances": {"Reservations": []},
    "CreateKeyPair": {"KeyName": "ray-autoscaler", "KeyMaterial": "not a key"},
    "DescribeKeyPairs": {"KeyPairs": []},
}  # fmt: skip


@pytest.fixture
def raw():
    return yaml.safe_load(FILE.read_text())


@pytest.fixture
def config(raw):
    prepared = prepare_config(copy.deepcopy(raw))
    validate_config(prepared)
    return prepared


@pytest.fixture
def cloud(monkeypatch, tmp_path):
    """AWS, answering from a table; botocore still checks and serialises requests. Yields what was asked."""
    asked: list[tuple[str, dict]] = []
    groups: list[dict] = []

    def make_request(_self, operation, request):
        body = request["body"]
        asked.append((operation.name, body))
        if operation.name == "CreateSecurityGroup":
            groups.append(GROUP)
            answer = {"GroupId": "sg-1"}
        elif operation.name == "DescribeSecurityGroups":
            answer = {"SecurityGroups": list(groups)}
        elif operation.name == "RunInstances":
            answer = {"Instances": [{"InstanceId": "i-1", "State": {"Code": 0, "Name": "pending"}}]}
        else:
            answer = ANSWERS[operation.name]
        return SimpleNamespace(status_code=200), copy.deepcopy(answer)

    monkeypatch.setattr(botocore.endpoint.Endpoint, "make_request", make_request)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(time, "sleep", lambda _s: None)
    for cached in (aws_utils.resource_cache, aws_utils.client_cache, aws_config._get_subnets_or_die):
        cached.cache_clear()
    yield asked
    for cached in (aws_utils.resource_cache, aws_utils.client_cache, aws_config._get_subnets_or_die):
        cached.cache_clear()


def test_node_types_have_explicit_resources_labels_and_caps(config):
    types = config["available_node_types"]
    assert set(types) == {"head", *WORKERS}
    assert types["head"]["resources"]["CPU"] == 0
    assert types["head"]["max_workers"] == 0
    for name, (pool, most) in WORKERS.items():
        assert types[name]["labels"] == {"eagleray.io/pool": pool}
        assert (types[name]["min_workers"], types[name]["max_workers"]) == (0, most)
        assert types[name]["resources"]["CPU"] > 0
        assert types[name]["resources"].get("GPU", 0) == (0 if pool == "cpu" else 1)
    assert config["max_workers"] == sum(most for _, most in WORKERS.values())


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_nodes_start_with_metrics_and_our_environment(config, commands):
    start = config[commands][-1]
    assert ". ~/eagleray/env" in start
    assert "--metrics-export-port" in start
    assert "0.0.0.0" not in start


def test_a_worker_node_has_a_guard_which_is_stopped_before_ray_is(config):
    stop, start = config["worker_start_ray_commands"]
    assert stop.index("eagleray.cluster.guard stop") < stop.index("ray stop")
    _, _, guarded = start.partition("-m eagleray.cluster.guard start -- ")
    words = guarded.replace("$RAY_HEAD_IP", "10.0.0.1").split()
    assert words[:2] == ["ray", "start"]
    assert ray_start_ray260.gcs_address(words) == ("10.0.0.1", 6379)


PYTHON = """#!/bin/bash
# `python3` of a machine, and of the venv that it makes; $HOME/venv_works: whether python3-venv is there.
uv=~/eagleray/uv/bin/uv
if [ "$2" = pip ]; then printf '#!/bin/bash\\necho "$@" >> ~/uv_calls' > $uv; chmod +x $uv; exit; fi
mkdir -p ~/eagleray/uv/bin; cp "$0" ~/eagleray/uv/bin/python
test -e ~/venv_works
"""


@pytest.mark.parametrize("has_venv", [True, False])
def test_uv_comes_in_a_venv_of_its_own_with_or_without_the_distributions_package(config, tmp_path, has_venv):
    stubs = {"python3": PYTHON, "sudo": '#!/bin/bash\necho "$@" >> ~/sudo_calls; touch ~/venv_works\n'}
    for name, text in stubs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    if has_venv:
        (tmp_path / "venv_works").touch()
    (tmp_path / "eagleray" / "dist").mkdir(parents=True)
    (tmp_path / "eagleray" / "dist" / "eagleray-1-py3-none-any.whl").touch()
    environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for command in config["setup_commands"][:4]:
        subprocess.run(["bash", "-c", command], env=environment, check=True)
    venv, install = (tmp_path / "uv_calls").read_text().splitlines()
    assert venv == f"venv --python 3.11 {tmp_path}/eagleray/venv"
    assert install == f"pip install {tmp_path}/eagleray/dist/eagleray-1-py3-none-any.whl[platform,aws]"
    asked = tmp_path / "sudo_calls"
    assert asked.exists() != has_venv
    assert has_venv or "install --quiet=2 --yes python3-venv" in asked.read_text()


def test_the_environment_file_switches_on_authentication_and_recovery(config, tmp_path):
    # Through Ray's own quoting, as `ray up` would run it over ssh.
    (tmp_path / "eagleray/venv/bin").mkdir(parents=True)
    (tmp_path / "eagleray/venv/bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "eagleray/venv/bin/python").chmod(0o755)
    (tmp_path / ".bashrc").touch()
    commands = config["setup_commands"]
    first = next(at for at, command in enumerate(commands) if "eagleray/env <<" in command)
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    for command in commands[first : first + 2]:
        done = subprocess.run(
            " ".join(word for word in _with_interactive(command) if word not in ("--login", "-i")),
            shell=True, env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    shown = subprocess.run(
        ["bash", "-c", ". ~/eagleray/env; env"], env=environment, capture_output=True, text=True, check=True
    )
    found = dict(line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line)
    assert found["RAY_AUTH_MODE"] == "token"
    assert found["RAY_AUTH_TOKEN_PATH"] == f"{tmp_path}/.ray/auth_token"
    assert profiles.named("default").environment().items() <= found.items()
    assert found["RAY_gcs_storage"] == "rocksdb"
    assert found["RAY_JOB_STOP_WAIT_TIME_S"] == "20"
    assert found["PATH"].startswith(f"{tmp_path}/eagleray/venv/bin:")
    assert "GLOO_SOCKET_IFNAME" in found


def test_bootstrap_asks_aws_for_what_the_file_says(config, cloud):
    ready = AWSNodeProvider.bootstrap_config(config)
    assert [name for name, _ in cloud].count("CreateSecurityGroup") == 1
    for node_type in ready["available_node_types"].values():
        launch = node_type["node_config"]
        assert launch["SubnetIds"] == ["subnet-1"]
        assert launch["SecurityGroupIds"] == ["sg-1"]
        assert launch["ImageId"]
        assert launch["KeyName"]
    rules = next(body for name, body in cloud if name == "AuthorizeSecurityGroupIngress")
    opened = {value for key, value in rules.items() if key.endswith("FromPort")}
    assert opened == {-1, 22}  # everything inside the group, ssh from outside


@pytest.mark.parametrize("node_type", WORKERS)
def test_only_training_runs_on_spot(config, cloud, node_type):
    ready = AWSNodeProvider.bootstrap_config(config)
    provider = AWSNodeProvider(ready["provider"], ready["cluster_name"])
    tags = {TAG_RAY_NODE_KIND: NODE_KIND_WORKER, TAG_RAY_USER_NODE_TYPE: node_type}
    provider.create_node(ready["available_node_types"][node_type]["node_config"], tags, 2)
    asked = next(body for name, body in cloud if name == "RunInstances")
    assert asked["MaxCount"] == 2
    assert asked.get("InstanceMarketOptions.MarketType") == ("spot" if node_type == "train_gpu" else None)
    assert asked["MetadataOptions.HttpTokens"] == "required"
    assert asked["BlockDeviceMapping.1.Ebs.Encrypted"] == "true"


def test_nothing_in_it_is_anyones_own(raw):
    text = FILE.read_text()
    for private in ("ImageId:", "KeyName:", "arn:", "SubnetIds:", "s3://", ".dkr.ecr."):
        assert private not in text
    assert raw["cluster_name"] == "eagleray"
