"""What docker-compose.yml and deploy/ say, held against rules and against the programs themselves.

That it works is tested in tests/processes: test_gateway.py, and test_compose.py in containers.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import text_format

from serving.protos import server_config_pb2
from serving.server.models import batching_parameters
from tests.running import ROOT, run
from tfdp.cli import flags
from tfdp.run.settings import TrainSettings
from tfdp.search.settings import TuneSettings

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def program(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed")


def test_each_profile_has_its_services():
    profiles: dict[str, set[str]] = {}
    for name, service in SERVICES.items():
        for profile in service["profiles"]:
            profiles.setdefault(profile, set()).add(name)
    assert profiles == {
        "train": {"node-1", "node-2"},
        "serve": {"serving-1", "serving-2", "gateway"},
        "observe": {"prometheus", "grafana"},
    }


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_bounded_pinned_and_not_root(name: str):
    service = SERVICES[name]
    assert re.search(r":v?\d+\.\d+", service["image"])
    user = re.sub(r"\$\{\w+:-(.+)\}", r"\1", service["user"])
    assert int(user.partition(":")[0]) > 0
    assert service["mem_limit"]
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")
    if "train" not in service["profiles"]:  # a training node takes the CPUs that there are
        assert service["cpus"] >= 1
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        mounts = [volume.split(":") for volume in service["volumes"] if volume[0] == "."]
        assert all(mount[-1] == "ro" for mount in mounts)


def test_replicas_differ_in_their_port_only():
    first, second = SERVICES["serving-1"].copy(), SERVICES["serving-2"].copy()
    assert first.pop("ports") != second.pop("ports")
    assert first == second
    assert first["image"] == "tensorflow/serving:2.20.0"
    threads = next(f for f in first["command"] if f.startswith("--grpc_max_threads="))
    assert int(threads.partition("=")[2]) > 4 * first["cpus"]


def test_nodes_are_one_cluster():
    configs = [
        json.loads(SERVICES[name]["environment"]["TF_CONFIG"]) for name in ("node-1", "node-2")
    ]
    assert configs[0]["cluster"] == configs[1]["cluster"]
    for index, config in enumerate(configs):
        assert config["task"] == {"type": "worker", "index": index}
        host = config["cluster"]["worker"][index].partition(":")[0]
        assert host == f"node-{index + 1}"
    assert not set(SERVICES["node-1"]["networks"]) & set(SERVICES["gateway"]["networks"])


def test_files_that_are_named_are_there():
    for service in SERVICES.values():
        for name in re.findall(r"/deploy/([\w./-]+)", json.dumps(service)):
            assert (DEPLOY / name).exists(), name
    for override in ("tls.yml", "gpu.yml"):
        assert set(yaml.safe_load((DEPLOY / override).read_text())["services"]) <= set(SERVICES)


def test_what_is_scraped_is_a_service_on_the_same_network():
    jobs = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    targets = [
        target for job in jobs for each in job["static_configs"] for target in each["targets"]
    ]
    assert sorted(targets) == ["gateway:8404", "serving-1:8501", "serving-2:8501"]
    for name in [target.partition(":")[0] for target in targets]:
        assert set(SERVICES[name]["networks"]) & set(SERVICES["prometheus"]["networks"])


def test_the_metrics_path_is_the_one_that_is_scraped():
    text = (DEPLOY / "monitoring.config").read_text()
    monitoring = text_format.Parse(text, server_config_pb2.MonitoringConfig())
    assert monitoring.prometheus_config.enable
    jobs = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    assert jobs[0]["metrics_path"] == monitoring.prometheus_config.path


def test_batches_fit_the_cpus_of_a_container():
    batching = batching_parameters.read(DEPLOY / "batching.config")
    assert batching.num_batch_threads == SERVICES["serving-1"]["cpus"]
    flags = SERVICES["serving-1"]["command"]
    assert f"--tensorflow_intra_op_parallelism={SERVICES['serving-1']['cpus']}" in flags
    assert "--enable_batching" in flags  # TF Serving ignores the file without it


def test_the_board_asks_the_data_source_that_there_is():
    board = json.loads((DEPLOY / "grafana/boards/serving.json").read_text())
    (source,) = yaml.safe_load((DEPLOY / "grafana/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    panels = board["panels"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    assert len({panel["id"] for panel in panels}) == len(panels)
    (provider,) = yaml.safe_load((DEPLOY / "grafana/dashboards/boards.yml").read_text())[
        "providers"
    ]
    assert provider["options"]["path"] == "/deploy/grafana/boards"


def test_the_gateway_and_the_containers_ask_for_health_in_the_same_words():
    asked = re.search(r"send-binary ([0-9a-f]+)", (DEPLOY / "haproxy.cfg").read_text())
    assert asked is not None
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        with subprocess.Popen(["bash", DEPLOY / "healthy.bash", port]) as check:
            connection, _ = listener.accept()
            with connection:
                request = b""
                while len(request) < len(asked[1]) // 2:
                    request += connection.recv(4096)
            assert check.wait(10) != 0  # it got no answer
    assert request.hex() == asked[1]


def test_the_search_of_the_batch_script_uses_what_the_job_asks_for():
    text = (DEPLOY / "slurm" / "search.sbatch").read_text().replace("\\\n", "")
    line = re.search(r"^python -m (tfdp\.tune .*) &$", text, re.MULTILINE)
    assert line is not None
    words = shlex.split(line[1])
    of_search, of_trials = words[: words.index("--")], words[words.index("--") + 1 :]
    settings = flags.parse(TuneSettings, of_search)
    flags.parse(TrainSettings, ["tfdp.train", "--recipe=mine.py", "--workdir=run", *of_trials])
    job = dict(re.findall(r"--([a-z-]+)=(\d+)\b", text.partition("python")[0]))
    assert settings.threads_per_trial == int(job["cpus-per-task"])
    assert settings.trials_in_flight == int(job["ntasks"])


def test_the_image_gets_every_package():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "packages"
    ]
    folders = {name.partition(".")[0] for name in packages}
    copied = re.findall(r"^COPY (\w+) \1$", (ROOT / "Dockerfile").read_text(), re.M)
    let_in = re.findall(r"^!(\w+)$", (ROOT / ".dockerignore").read_text(), re.M)
    assert folders == set(copied)
    assert folders <= set(let_in)


@program("docker-compose")
@pytest.mark.parametrize("override", [None, "tls.yml", "gpu.yml"])
def test_compose_itself_reads_it(override: str | None):
    files = ["-f", "docker-compose.yml", *(["-f", f"deploy/{override}"] if override else [])]
    profiles = [f"--profile={name}" for name in ("train", "serve", "observe")]
    config = yaml.safe_load(run(["docker-compose", *files, *profiles, "config"]))
    assert set(config["services"]) == set(SERVICES)


@program("haproxy")
@pytest.mark.parametrize("tls", [False, True])
def test_haproxy_itself_reads_it(tls: bool, tmp_path: Path):
    bind = SERVICES["gateway"]["environment"]["GATEWAY_BIND"]
    if tls:
        override = yaml.safe_load((DEPLOY / "tls.yml").read_text())
        bind = override["services"]["gateway"]["environment"]["GATEWAY_BIND"]
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-batch"]
        command += ["-keyout", f"{tmp_path}/gateway.pem", "-out", f"{tmp_path}/chain.pem"]
        subprocess.run(command, check=True, capture_output=True)
        with (tmp_path / "gateway.pem").open("ab") as both:
            both.write((tmp_path / "chain.pem").read_bytes())
        bind = bind.replace("/tls/", f"{tmp_path}/")
    output = run(["haproxy", "-c", "-f", "deploy/haproxy.cfg"], env={"GATEWAY_BIND": bind})
    assert "WARNING" not in output


@program("promtool")
def test_prometheus_itself_reads_it():
    output = run(["promtool", "check", "config", "deploy/prometheus.yml"])
    assert "5 rules found" in output


@program("promtool")
def test_a_version_that_fails_is_an_alert_at_once_and_for_a_while(tmp_path: Path):
    labels = {"instance": "a", "model_path": "/m/2", "status": "fail"}
    pairs = ",".join(f'{name}="{value}"' for name, value in labels.items())
    series = f":tensorflow:cc:saved_model:load_attempt_count{{{pairs}}}"
    alert = {
        "exp_labels": labels,
        "exp_annotations": {"summary": "/m/2 failed to load on a"},
    }
    # Nothing for two minutes, a failure, another one after half an hour.
    checks = {"1m": [], "3m": [alert], "11m": [alert], "20m": [], "34m": [alert], "50m": []}
    check_alerts(tmp_path, {series: "_x2 1x30 2x30"}, "VersionFailedToLoad", checks)


@program("promtool")
def test_a_version_whose_warm_up_fails_is_an_alert(tmp_path: Path):
    # Loaded six times, a minute apart; another version is loaded once, and once more by a rollback.
    values = {loads("a", "/m/2"): "_x2 1 2 3 4 5 6x30", loads("a", "/m/1"): "1x10 2x30"}
    alert = {
        "exp_labels": {"instance": "a", "model_path": "/m/2", "status": "success"},
        "exp_annotations": {
            "summary": "/m/2 is loaded again and again on a: its warm-up may fail",
        },
    }
    checks = {"3m": [], "4m": [alert], "12m": [alert], "20m": []}
    check_alerts(tmp_path, values, "VersionLoadsAgainAndAgain", checks)


@program("promtool")
def test_a_version_that_one_replica_has_and_another_one_lacks_is_an_alert(tmp_path: Path):
    values = {
        **{f'up{{job="serving",instance="{each}"}}': "1x90" for each in "ab"},
        # Replica b was started anew: it never loads the old version, and the new one late.
        loads("a", "/m/1"): "1x90",
        loads("a", "/m/2"): "_x49 1x40",
        loads("b", "/m/2"): "_x79 1x10",
    }
    alert = {
        "exp_labels": {"model_path": "/m/2"},
        "exp_annotations": {"summary": "/m/2 is loaded on 1 replicas only"},
    }
    checks = {"45m": [], "52m": [], "60m": [alert], "78m": [alert], "81m": []}
    check_alerts(tmp_path, values, "VersionMissing", checks)


def loads(instance: str, model_path: str) -> str:
    """The series of a replica's successful loads of a version."""
    labels = f'instance="{instance}",model_path="{model_path}",status="success"'
    return f":tensorflow:cc:saved_model:load_attempt_count{{{labels}}}"


def check_alerts(
    tmp_path: Path, series: dict[str, str], name: str, checks: dict[str, list[dict[str, Any]]]
) -> None:
    """Checks at which times an alert fires, given the values of some series, one a minute."""
    inputs = [{"series": each, "values": values} for each, values in series.items()]
    alerts = [{"eval_time": at, "alertname": name, "exp_alerts": x} for at, x in checks.items()]
    tests = {
        "rule_files": [str(DEPLOY / "alerts.yml")],
        "tests": [{"interval": "1m", "input_series": inputs, "alert_rule_test": alerts}],
    }
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))
    run(["promtool", "test", "rules", str(tmp_path / "tests.yml")])
