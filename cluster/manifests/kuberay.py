"""KubeRay manifests (ray.io/v1, operator v1.7) from typed values.

The image must hold moetune; the claim is a volume that all pods can write, mounted as the storage
folder. Clusters ask for a token: the operator makes the secret (`authOptions`).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.environment import serve_middleware

Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]{0,48}[a-z0-9])?$")]
Count = Annotated[int, Field(ge=0)]
_JOB_FOLDER = "/etc/moetune"
_PORTS = {"gcs-server": 6379, "dashboard": 8265, "metrics": 8080, "serve": 8000}


class _Values(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Pod(_Values):
    """What one pod of a kind gets. Requests equal limits, as Ray counts on them."""

    cpus: Annotated[int, Field(gt=0)] = 4
    memory_gib: Annotated[int, Field(gt=0)] = 16
    gpus: Count = 0


class Workers(Pod):
    """A group of equal worker pods."""

    name: Name = "workers"
    replicas: Count = 1
    min_replicas: Count = 0
    max_replicas: Count = 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.min_replicas <= self.replicas <= self.max_replicas:
            raise ValueError(
                f"replicas is {self.replicas}, but must lie between min_replicas, which is "
                f"{self.min_replicas}, and max_replicas, which is {self.max_replicas}"
            )
        return self


class Kubernetes(_Values):
    """A Ray cluster on Kubernetes."""

    name: Name = "moetune"
    namespace: Name = "default"
    image: str
    """Image with moetune and Ray installed."""
    ray_version: str
    """Ray's version in the image."""
    head: Pod = Pod()
    workers: tuple[Workers, ...] = (Workers(),)
    claim: str | None = None
    """PersistentVolumeClaim (ReadWriteMany) for studies and versions."""
    storage: str = "/storage"
    """Where the claim is mounted; `cluster.storage` of the job."""
    autoscaling: bool = False
    redis: str | None = None
    """Address of a Redis that lets the cluster survive the loss of its head, host:port."""


def ray_cluster(values: Kubernetes) -> dict[str, Any]:
    """A RayCluster that stays up, for `moetune submit`."""
    return _resource("RayCluster", values, _cluster(values))


def ray_job(values: Kubernetes, job: str) -> list[dict[str, Any]]:
    """A RayJob that runs the job (the text of its file) on a cluster of its own, then removes it;
    before it the ConfigMap in which the job travels."""
    name = f"{values.name}-job"
    travels = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": values.namespace},
        "data": {"job.yaml": job},
    }
    spec = {
        "entrypoint": f"python -m orchestrator.cli tune {_JOB_FOLDER}/job.yaml",
        "entrypointNumCpus": 0,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "backoffLimit": 0,
        "rayClusterSpec": _cluster(values, config_map=name),
    }
    return [travels, _resource("RayJob", values, spec)]


def ray_service(
    values: Kubernetes, import_path: str, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """A RayService: Serve's application builder at `import_path`, called with `arguments`."""
    application = {
        "name": values.name,
        "route_prefix": "/",
        "import_path": import_path,
        "args": dict(arguments),
    }
    limits = arguments.get("serve", {}).get("limits", {})
    middleware = serve_middleware(limits.get("max_body_bytes"))
    config = {
        "controller_options": {"runtime_env": {"env_vars": middleware}},
        "applications": [application],
    }
    spec = {
        "serveConfigV2": yaml.safe_dump(config, sort_keys=False),
        "rayClusterConfig": _cluster(values),
    }
    return _resource("RayService", values, spec)


def to_yaml(*manifests: Mapping[str, Any]) -> str:
    """One YAML stream, for `kubectl apply -f -`."""
    return yaml.safe_dump_all([dict(one) for one in manifests], sort_keys=False)


def _resource(kind: str, values: Kubernetes, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "ray.io/v1",
        "kind": kind,
        "metadata": {"name": values.name, "namespace": values.namespace},
        "spec": spec,
    }


def _cluster(values: Kubernetes, config_map: str | None = None) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "rayVersion": values.ray_version,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            # Trials belong on the workers; the head keeps its CPUs for Ray and the drivers.
            "rayStartParams": {"num-cpus": "0"} if values.workers else {},
            "template": _template("ray-head", values.head, values, config_map),
        },
        "workerGroupSpecs": [
            {
                "groupName": group.name,
                "replicas": group.replicas,
                "minReplicas": group.min_replicas,
                "maxReplicas": group.max_replicas,
                "rayStartParams": {},
                "template": _template("ray-worker", group, values),
            }
            for group in values.workers
        ],
    }
    if values.autoscaling:
        spec |= {"enableInTreeAutoscaling": True, "autoscalerOptions": {"version": "v2"}}
    if values.redis:
        spec["gcsFaultToleranceOptions"] = {"redisAddress": values.redis}
    return spec


def _template(
    container: str, pod: Pod, values: Kubernetes, config_map: str | None = None
) -> dict[str, Any]:
    amounts = {"cpu": str(pod.cpus), "memory": f"{pod.memory_gib}Gi"}
    if pod.gpus:
        amounts["nvidia.com/gpu"] = str(pod.gpus)
    volumes, mounts = _volumes(values, config_map)
    ports = [{"name": name, "containerPort": port} for name, port in _PORTS.items()]
    return {
        "spec": {
            "containers": [
                {
                    "name": container,
                    "image": values.image,
                    "resources": {"requests": amounts, "limits": dict(amounts)},
                    "ports": ports if container == "ray-head" else ports[2:3],
                    "volumeMounts": mounts,
                }
            ],
            "volumes": volumes,
        }
    }


def _volumes(
    values: Kubernetes, config_map: str | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    if values.claim:
        volumes.append({"name": "storage", "persistentVolumeClaim": {"claimName": values.claim}})
        mounts.append({"name": "storage", "mountPath": values.storage})
    if config_map:
        volumes.append({"name": "job", "configMap": {"name": config_map}})
        mounts.append({"name": "job", "mountPath": _JOB_FOLDER, "readOnly": True})
    return volumes, mounts
