"""Manifests hold the fields of KubeRay's ray.io/v1 and no other, and what the values say."""

from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from cluster.environment import MAX_BODY_VARIABLE, SERVE_MIDDLEWARE
from cluster.manifests.kuberay import (
    Kubernetes,
    Pod,
    Workers,
    ray_cluster,
    ray_job,
    ray_service,
    to_yaml,
)

VALUES = Kubernetes(
    name="tuning",
    namespace="ml",
    image="registry.example/moetune:1",
    ray_version="2.60.0",
    head=Pod(cpus=2, memory_gib=8),
    workers=(
        Workers(name="gpus", cpus=8, memory_gib=64, gpus=4, replicas=2, max_replicas=6),
        Workers(name="cpus"),
    ),
    claim="studies",
    autoscaling=True,
    redis="redis:6379",
)


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


STRING, NUMBER, FLAG = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
STRINGS = {"type": "object", "additionalProperties": STRING}
RESOURCES = _object(("requests", "limits"), requests=STRINGS, limits=STRINGS)
CONTAINER = _object(
    ("name", "image", "resources"),
    name=STRING,
    image=STRING,
    resources=RESOURCES,
    ports={"items": _object(("containerPort",), name=STRING, containerPort=NUMBER)},
    volumeMounts={
        "items": _object(("name", "mountPath"), name=STRING, mountPath=STRING, readOnly=FLAG)
    },
)
VOLUME = _object(
    ("name",),
    name=STRING,
    persistentVolumeClaim=_object(("claimName",), claimName=STRING),
    configMap=_object(("name",), name=STRING),
)
TEMPLATE = _object(
    ("spec",), spec=_object(containers={"items": CONTAINER}, volumes={"items": VOLUME})
)
CLUSTER = _object(
    ("headGroupSpec",),
    rayVersion=STRING,
    authOptions=_object(mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=_object(version={"enum": ["v1", "v2"]}),
    gcsFaultToleranceOptions=_object(redisAddress=STRING),
    headGroupSpec=_object(("template",), rayStartParams=STRINGS, template=TEMPLATE),
    workerGroupSpecs={
        "items": _object(
            ("groupName", "minReplicas", "maxReplicas", "template"),
            groupName=STRING,
            replicas=NUMBER,
            minReplicas=NUMBER,
            maxReplicas=NUMBER,
            rayStartParams=STRINGS,
            template=TEMPLATE,
        )
    },
)
JOB = _object(
    ("entrypoint", "rayClusterSpec"),
    entrypoint=STRING,
    entrypointNumCpus=NUMBER,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=NUMBER,
    backoffLimit=NUMBER,
    rayClusterSpec=CLUSTER,
)
SERVICE = _object(("rayClusterConfig",), serveConfigV2=STRING, rayClusterConfig=CLUSTER)


def _read(*manifests: dict[str, Any]) -> list[dict[str, Any]]:
    """Through YAML and back, as kubectl sees them."""
    return list(yaml.safe_load_all(to_yaml(*manifests)))


def _valid(manifest: dict[str, Any], kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", kind)
    assert manifest["metadata"] == {"name": "tuning", "namespace": "ml"}
    jsonschema.validate(manifest["spec"], schema)
    return dict(manifest["spec"])


def test_cluster_is_what_the_values_say() -> None:
    [manifest] = _read(ray_cluster(VALUES))
    spec = _valid(manifest, "RayCluster", CLUSTER)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["autoscalerOptions"] == {"version": "v2"}
    assert spec["gcsFaultToleranceOptions"] == {"redisAddress": "redis:6379"}
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    gpus = groups["gpus"]
    assert (gpus["replicas"], gpus["minReplicas"], gpus["maxReplicas"]) == (2, 0, 6)
    pod = gpus["template"]["spec"]
    amounts = {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "4"}
    assert pod["containers"][0]["resources"] == {"requests": amounts, "limits": amounts}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "studies"}
    assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == "/storage"
    assert "nvidia.com/gpu" not in str(groups["cpus"])


def test_plain_cluster_has_no_options_that_were_not_asked_for() -> None:
    plain = Kubernetes(image="i", ray_version="2.60.0")
    spec = ray_cluster(plain)["spec"]
    assert not {"autoscalerOptions", "gcsFaultToleranceOptions"} & set(spec)
    assert spec["headGroupSpec"]["template"]["spec"]["volumes"] == []


def test_job_travels_to_the_head_beside_its_cluster() -> None:
    text = "name: x\ntrain: {}\n"
    config_map, manifest = _read(*ray_job(VALUES, text))
    assert config_map["kind"] == "ConfigMap"
    assert config_map["data"] == {"job.yaml": text}
    spec = _valid(manifest, "RayJob", JOB)
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    mounted = {one["name"]: one["mountPath"] for one in head["containers"][0]["volumeMounts"]}
    assert spec["entrypoint"].endswith(f" tune {mounted['job']}/job.yaml")
    volumes = {one["name"]: one for one in head["volumes"]}
    assert volumes["job"]["configMap"]["name"] == config_map["metadata"]["name"]
    workers = spec["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert [one["name"] for one in workers["volumes"]] == ["storage"]


def test_service_holds_a_serve_configuration_that_ray_takes() -> None:
    from ray.serve.schema import ServeDeploySchema

    manifest = ray_service(VALUES, "orchestrator.serve.deploy:application", {"name": "home"})
    [manifest] = _read(manifest)
    spec = _valid(manifest, "RayService", SERVICE)
    config = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    assert config.applications[0].import_path == "orchestrator.serve.deploy:application"
    assert config.applications[0].args == {"name": "home"}
    assert config.controller_options is not None
    assert config.controller_options.runtime_env == {"env_vars": SERVE_MIDDLEWARE}


def test_what_bodies_a_service_takes_its_proxies_take_too() -> None:
    arguments = {"serve": {"limits": {"max_body_bytes": 5_000_000}}}
    manifest = ray_service(VALUES, "orchestrator.serve.deploy:application", arguments)
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    environment = config["controller_options"]["runtime_env"]["env_vars"]
    assert environment == {**SERVE_MIDDLEWARE, MAX_BODY_VARIABLE: "5000000"}


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: Workers(replicas=3, max_replicas=2), "max_replicas"),
        (lambda: Workers(replicas=1, min_replicas=2, max_replicas=4), "min_replicas"),
        (lambda: Workers(name="No_Name"), "name"),
        (lambda: Pod(cpus=0), "cpus"),
        (lambda: Kubernetes(image="i", ray_version="2", name="-x"), "name"),
        (lambda: Kubernetes(image="i", ray_version="2", replica=1), "replica"),
    ],
)
def test_refuses_values_that_cannot_be(build: Any, field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        build()
