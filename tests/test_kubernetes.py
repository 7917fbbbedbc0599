"""What deploy/kubernetes says: its form, and that its rules for restarts are those of the project.

Kubernetes' own schemas check the form. Here is no cluster: the rules are interpreted below, as the
documentation of Job and JobSet describes them.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import kubeflow_trainer_api.models as kubeflow
import kubernetes_validate
import pytest
import yaml

from cluster import exit_codes, policy
from cluster.resolvers import kubernetes
from serving.server.frontend import options
from tests.running import ROOT
from tfdp.cli import flags
from tfdp.run.settings import TrainSettings

FOLDER = ROOT / "deploy" / "kubernetes"
DOCUMENTS: dict[str, list[dict[str, Any]]] = {
    path.name: list(yaml.safe_load_all(path.read_text())) for path in sorted(FOLDER.iterdir())
}
VERSIONS = ["1.33", "1.37"]  # the oldest that the manifests ask for, and a new one
KUBEFLOW = {
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): kubeflow.JobsetV1alpha2JobSet,
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): kubeflow.TrainerV1alpha1TrainJob,
    (
        "trainer.kubeflow.org/v1alpha1",
        "ClusterTrainingRuntime",
    ): kubeflow.TrainerV1alpha1ClusterTrainingRuntime,
}
ENDS_THE_RUN = {exit_codes.FAILED, exit_codes.BAD_INPUT}
CODES = range(1, 256)


def the(file: str, kind: str) -> dict[str, Any]:
    (found,) = [document for document in DOCUMENTS[file] if document["kind"] == kind]
    return found


JOB = the("job.yaml", "Job")
JOB_SET = the("jobset.yaml", "JobSet")
RUNTIME = the("trainer-runtime.yaml", "ClusterTrainingRuntime")
TRAIN_JOB = the("trainer-runtime.yaml", "TrainJob")
JOB_SET_SPECS = {"jobset.yaml": JOB_SET["spec"], "trainer": RUNTIME["spec"]["template"]["spec"]}


def job_spec(job_set_spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of the only job of a JobSet."""
    (replicated,) = job_set_spec["replicatedJobs"]
    assert replicated.get("replicas", 1) == 1
    return replicated["template"]["spec"]  # type: ignore[no-any-return]


JOB_SPECS = {"job.yaml": JOB["spec"]} | {
    name: job_spec(spec) for name, spec in JOB_SET_SPECS.items()
}


def container(spec: Mapping[str, Any]) -> dict[str, Any]:
    (found,) = spec["template"]["spec"]["containers"]
    return found  # type: ignore[no-any-return]


# --- The form -------------------------------------------------------------------------------------


def check_form(document: dict[str, Any]) -> None:
    """Raises an error if a document has fields that its kind does not have, or of other types."""
    model = KUBEFLOW.get((document["apiVersion"], document["kind"]))
    if model is None:
        for version in VERSIONS:
            kubernetes_validate.validate(document, version, strict=True)
    else:
        # Unknown fields are dropped.
        assert model.from_dict(copy.deepcopy(document)).to_dict() == document


@pytest.mark.parametrize("file", DOCUMENTS)
def test_kubernetes_knows_every_field(file: str) -> None:
    for document in DOCUMENTS[file]:
        check_form(document)


@pytest.mark.parametrize("name", JOB_SPECS)
def test_jobs_inside_of_other_kinds_have_the_form_of_a_job(name: str) -> None:
    spec = copy.deepcopy(JOB_SPECS[name])
    check_form(
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "mine"}, "spec": spec}
    )


@pytest.mark.parametrize(
    ("document", "place"),
    [
        (JOB, "spec"),
        (JOB_SET, "spec"),
        (JOB_SET, "spec failurePolicy rules 0"),
        (JOB_SET, "spec replicatedJobs 0 template spec podFailurePolicy rules 0 onExitCodes"),
        (RUNTIME, "spec template spec replicatedJobs 0 template spec template spec containers 0"),
        (TRAIN_JOB, "spec trainer"),
    ],
)
def test_a_misspelt_field_is_found(document: dict[str, Any], place: str) -> None:
    wrong = copy.deepcopy(document)
    inner: Any = wrong
    for key in place.split():
        inner = inner[int(key) if key.isdecimal() else key]
    inner["exitCode"] = "1"
    with pytest.raises((AssertionError, kubernetes_validate.ValidationError)):
        check_form(wrong)


@pytest.mark.parametrize("name", JOB_SPECS)
def test_a_job_keeps_the_rules_that_no_schema_has(name: str) -> None:
    spec = JOB_SPECS[name]
    pod = spec["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert (pod["restartPolicy"], spec["podReplacementPolicy"]) == ("Never", "Failed")
    for rule in spec["podFailurePolicy"]["rules"]:
        if exits := rule.get("onExitCodes"):
            assert exits["containerName"] == container(spec)["name"]
            assert exits["values"] == sorted(set(exits["values"]))
            assert 0 not in exits["values"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container(spec)["volumeMounts"]} == volumes
    assert pod["terminationGracePeriodSeconds"] >= 60


# --- The rules for restarts -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class End:
    """The end of a pod.

    Args:
        code: its container's exit code.
        is_drained: whether Kubernetes itself ended it: a drain, a preemption, an eviction.
    """

    code: int
    is_drained: bool = False


def matches(rule: Mapping[str, Any], end: End) -> bool:
    if exits := rule.get("onExitCodes"):
        is_listed = end.code in exits["values"]
        return end.code != 0 and is_listed == {"In": True, "NotIn": False}[exits["operator"]]
    conditions = {"DisruptionTarget": str(end.is_drained)}
    return any(conditions[each["type"]] == each["status"] for each in rule["onPodConditions"])


def failure(spec: Mapping[str, Any], ends: list[End]) -> tuple[str, str] | None:
    """Reason and message with which a Job fails after pods have ended; None if they come back."""
    counted = 0
    for end in ends:
        rules = enumerate(spec["podFailurePolicy"]["rules"])
        index, action = next(
            ((i, rule["action"]) for i, rule in rules if matches(rule, end)), (None, "Count")
        )
        if action == "FailJob":
            return "PodFailurePolicy", f"Pod x matching FailJob rule at index {index}"
        counted += {"Count": 1, "Ignore": 0}[action]
    if counted > spec["backoffLimit"]:
        return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    return None


def answer(job_set_spec: Mapping[str, Any], *ends: End) -> str:
    """What a JobSet does after pods have ended."""
    failed = failure(job_spec(job_set_spec), list(ends))
    if failed is None:
        return "nothing"
    reason, message = failed
    for rule in job_set_spec["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns") or [""]
        if reason in (rule.get("onJobFailureReasons") or [reason]) and any(
            re.search(pattern, message) for pattern in patterns
        ):
            return str(rule["action"])
    return "RestartJobSet"


@pytest.mark.parametrize("name", JOB_SET_SPECS)
def test_a_job_set_ends_on_codes_1_and_2_and_starts_all_again_on_others(name: str) -> None:
    answers = {code: answer(JOB_SET_SPECS[name], End(code)) for code in CODES}
    assert answers == {
        code: "FailJobSet" if code in ENDS_THE_RUN else "RestartJobSet" for code in CODES
    }


@pytest.mark.parametrize("name", JOB_SET_SPECS)
def test_a_drain_does_not_count(name: str) -> None:
    spec = JOB_SET_SPECS[name]
    for code in set(CODES) - ENDS_THE_RUN:
        assert answer(spec, End(code, is_drained=True)) == "RestartJobSetAndIgnoreMaxRestarts"
    assert answer(spec, End(138), End(143, is_drained=True)) == "RestartJobSetAndIgnoreMaxRestarts"
    for code in ENDS_THE_RUN:
        assert answer(spec, End(code, is_drained=True)) == "FailJobSet"


def test_a_job_ends_on_codes_1_and_2_and_pods_come_back_on_others() -> None:
    for code in CODES:
        assert (failure(JOB["spec"], [End(code)]) is not None) == (code in ENDS_THE_RUN), code
    without_limit = JOB["spec"] | {"backoffLimit": 0}
    assert failure(without_limit, [End(143, is_drained=True)]) is None
    assert failure(without_limit, [End(138)]) is not None
    assert failure(JOB["spec"], [End(138)] * 100 * JOB["spec"]["completions"]) is None


def test_restarts_are_those_of_the_launcher() -> None:
    """For every code of a worker, and every signal. A worker has no other codes below 128."""
    own = {value for name, value in vars(exit_codes).items() if name.isupper()}
    for code in (own | set(range(128, 256))) - {exit_codes.FINISHED}:
        decision = policy.decide([policy.Exit("worker 0", code)], max_restarts=1)
        restarts = decision.exit_code is None
        for spec in JOB_SET_SPECS.values():
            assert (answer(spec, End(code)) == "RestartJobSet") == restarts, code
        assert (failure(JOB["spec"], [End(code)]) is None) == restarts, code


@pytest.mark.parametrize("name", JOB_SET_SPECS)
def test_rules_have_names_that_job_set_accepts(name: str) -> None:
    names = [rule["name"] for rule in JOB_SET_SPECS[name]["failurePolicy"]["rules"]]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", each) for each in names)


# --- The workers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["job.yaml", "jobset.yaml"])
def test_the_number_of_workers_is_the_same_in_all_three_places(name: str) -> None:
    spec = JOB_SPECS[name]
    (workers,) = [
        each["value"] for each in container(spec)["env"] if each["name"] == "TFDP_WORKERS"
    ]
    assert int(workers) == spec["completions"] == spec["parallelism"] > 1


def test_a_train_job_gets_the_number_from_kubeflow() -> None:
    assert RUNTIME["spec"]["mlPolicy"].get("jax") == {}
    assert not {"completions", "parallelism"} & JOB_SPECS["trainer"].keys()
    assert "TFDP_WORKERS" not in yaml.safe_dump_all([RUNTIME, TRAIN_JOB])
    # Trainer finds the pods that it describes by these names.
    (replicated,) = RUNTIME["spec"]["template"]["spec"]["replicatedJobs"]
    label = replicated["template"]["metadata"]["labels"]
    assert label == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert replicated["name"] == container(JOB_SPECS["trainer"])["name"] == "node"
    assert TRAIN_JOB["spec"]["runtimeRef"]["name"] == RUNTIME["metadata"]["name"]


def pod_name(file: str, index: int) -> str:
    """The full name that Kubernetes gives to a pod."""
    if file == "job.yaml":
        name, subdomain = JOB["metadata"]["name"], JOB["spec"]["template"]["spec"]["subdomain"]
        assert subdomain == the(file, "Service")["metadata"]["name"]
    else:
        (replicated,) = JOB_SET["spec"]["replicatedJobs"]
        subdomain = JOB_SET["metadata"]["name"]
        name = f"{subdomain}-{replicated['name']}-0"
    return f"{name}-{index}.{subdomain}.default.svc.cluster.local"


@pytest.mark.parametrize("file", ["job.yaml", "jobset.yaml"])
def test_every_pod_finds_its_place(file: str) -> None:
    size = JOB_SPECS[file]["completions"]
    environ = {each["name"]: each["value"] for each in container(JOB_SPECS[file])["env"]}
    for index in range(size):
        indexed = environ | {"JOB_COMPLETION_INDEX": str(index)}
        place = kubernetes.find(indexed, pod_name(file, index))
        assert place is not None
        assert (place.rank, place.size, place.chief_host) == (index, size, pod_name(file, 0))


@pytest.mark.parametrize("name", ["job.yaml", "jobset.yaml", "trainer"])
def test_workers_are_started_with_flags_that_training_has(name: str) -> None:
    worker = container(JOB_SPECS[name])
    assert worker["command"] == ["python", "-m", "tfdp.train"]  # no shell that keeps the signals
    arguments = TRAIN_JOB["spec"]["trainer"]["args"] if name == "trainer" else worker["args"]
    settings = flags.parse(TrainSettings, ["train", *arguments])
    (mount,) = worker["volumeMounts"]
    assert str(settings.workdir).startswith(f"{mount['mountPath']}/")
    if name == "job.yaml":
        assert settings.startup_timeout_s > 2 * 360  # pods come back after up to six minutes


@pytest.mark.parametrize(
    ("file", "labels"),
    [
        ("job.yaml", {"batch.kubernetes.io/job-name": JOB["metadata"]["name"]}),
        ("jobset.yaml", {"jobset.sigs.k8s.io/jobset-name": JOB_SET["metadata"]["name"]}),
        ("trainer-runtime.yaml", {"jobset.sigs.k8s.io/jobset-name": TRAIN_JOB["metadata"]["name"]}),
    ],
)
def test_only_workers_may_connect_to_workers(file: str, labels: dict[str, str]) -> None:
    spec = the(file, "NetworkPolicy")["spec"]
    selected = {"podSelector": {"matchLabels": labels}}
    assert spec == selected | {"policyTypes": ["Ingress"], "ingress": [{"from": [selected]}]}


def test_the_service_finds_the_pods_of_the_job() -> None:
    spec = the("job.yaml", "Service")["spec"]
    assert spec["selector"] == {"batch.kubernetes.io/job-name": JOB["metadata"]["name"]}
    assert (spec["clusterIP"], spec["publishNotReadyAddresses"]) == ("None", True)


# --- Serving --------------------------------------------------------------------------------------


def test_replicas_have_flags_that_servers_know() -> None:
    server = container(the("serving.yaml", "Deployment")["spec"])
    arguments = [each.replace("/config/", f"{ROOT}/deploy/") for each in server["args"]]
    (model,) = [each["value"] for each in server["env"] if each["name"] == "MODEL_NAME"]
    # What the image adds.
    arguments += [f"--model_name={model}", f"--model_base_path=/models/{model}"]
    found = options.parse(["--port=8500", "--rest_api_port=8501", *arguments], "")
    assert found.grpc_channel_arguments == (("grpc.max_connection_age_ms", 60_000),)
    assert found.batching is not None
    assert found.batching.num_batch_threads == int(server["resources"]["limits"]["cpu"])
    mounts = {mount["mountPath"]: mount for mount in server["volumeMounts"]}
    assert mounts[f"/models/{model}"]["readOnly"]
    text = (FOLDER / "serving.yaml").read_text()
    files = re.findall(r"--from-file=\.\./(\S+)", text)
    assert set(re.findall(r"/config/(\S+)", text)) == set(files)


def test_clients_get_the_address_of_every_replica() -> None:
    service, deployment = the("serving.yaml", "Service"), the("serving.yaml", "Deployment")
    spec = deployment["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert service["spec"]["clusterIP"] == "None"
    assert "publishNotReadyAddresses" not in service["spec"]
    for selector in (service["spec"]["selector"], spec["selector"]["matchLabels"]):
        assert selector.items() <= labels.items()
    ports = {port["containerPort"] for port in container(spec)["ports"]}
    assert {port["port"] for port in service["spec"]["ports"]} == ports
    probes = [container(spec)[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")]
    assert {probe["grpc"]["port"] for probe in probes} <= ports
    assert "--enable_grpc_healthcheck_service" in container(spec)["args"]
    name = f"dns:///{service['metadata']['name']}.default.svc.cluster.local:8500"
    assert name in (FOLDER / "serving.yaml").read_text()
