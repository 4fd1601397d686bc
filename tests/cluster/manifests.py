"""The fields of KubeRay's and Kubernetes' manifests, as far as the deployment files use them; others are refused."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti)?$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Port(Strict):
    name: Name
    containerPort: int


class Mount(Strict):
    name: Name
    mountPath: str


class Resources(Strict):
    requests: dict[str, Quantity]
    limits: dict[str, Quantity]


class SecretRef(Strict):
    name: Name
    optional: bool = False


class EnvFrom(Strict):
    secretRef: SecretRef


class SecurityContext(Strict):
    fsGroup: int
    fsGroupChangePolicy: Literal["OnRootMismatch", "Always"]


class Container(Strict):
    name: Name
    image: str
    envFrom: list[EnvFrom] = []
    ports: list[Port] = []
    resources: Resources
    volumeMounts: list[Mount] = []


class Claim(Strict):
    claimName: Name


class Memory(Strict):
    medium: Literal["Memory"]
    sizeLimit: Quantity


class Volume(Strict):
    name: Name
    persistentVolumeClaim: Claim | None = None
    emptyDir: Memory | None = None


class Toleration(Strict):
    key: str
    operator: Literal["Exists", "Equal"]
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class PodSpec(Strict):
    securityContext: SecurityContext
    containers: list[Container] = Field(min_length=1)
    volumes: list[Volume] = []
    tolerations: list[Toleration] = []
    terminationGracePeriodSeconds: int = 30


class Template(Strict):
    spec: PodSpec


class HeadGroup(Strict):
    rayStartParams: dict[str, str]
    template: Template


class WorkerGroup(HeadGroup):
    groupName: Name
    replicas: int
    minReplicas: int
    maxReplicas: int


class AuthOptions(Strict):
    mode: Literal["token", "disabled"]


class AutoscalerOptions(Strict):
    idleTimeoutSeconds: int
    upscalingMode: Literal["Default", "Aggressive", "Conservative"]


class FaultTolerance(Strict):
    redisAddress: str


class ClusterSpec(Strict):
    rayVersion: str
    gcsFaultToleranceOptions: FaultTolerance | None = None
    authOptions: AuthOptions
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: AutoscalerOptions | None = None
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup] = Field(min_length=1)


class JobSpec(Strict):
    entrypoint: str
    runtimeEnvYAML: str
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode"]
    submitterConfig: dict[Literal["backoffLimit"], int]
    backoffLimit: int
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: int
    rayClusterSpec: ClusterSpec


class Metadata(Strict):
    name: Name
    labels: dict[Literal["kueue.x-k8s.io/queue-name"], Name] = {}


class Storage(Strict):
    requests: dict[Literal["storage"], Quantity]


class ClaimSpec(Strict):
    accessModes: list[Literal["ReadWriteMany", "ReadWriteOnce", "ReadOnlyMany"]]
    storageClassName: Name
    resources: Storage


class VolumeClaim(Strict):
    apiVersion: Literal["v1"]
    kind: Literal["PersistentVolumeClaim"]
    metadata: Metadata
    spec: ClaimSpec


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec
