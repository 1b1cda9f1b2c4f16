"""Jobs on Kubernetes: a RayJob manifest for KubeRay, and the few `kubectl` calls around it.

KubeRay makes a Ray cluster of pods, runs the job's command on its head, and removes the cluster afterwards. A job
that fails gets a new cluster and the same command, which goes on where it stopped. The manifest holds no secret:
credentials come from a Kubernetes secret by name, and the operator makes Ray's token.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import yaml

from cluster.errors import ClusterError
from cluster.spec import ClusterSpec, NodeGroup, storage_variables

KUBERAY_VERSION = "1.6.2"
"""The KubeRay whose field reference the manifest is checked against (tests/cluster/data). It needs 1.6 or later."""

_GPU = "nvidia.com/gpu"
_GPU_KIND = "nvidia.com/gpu.product"  # the label that NVIDIA's feature discovery puts on nodes
_HEAD = "ray-head"
# What kubectl says, and what to do about it; the first that is found counts.
_REMEDIES = (
    ("AlreadyExists", "`autogaze cluster down FILE` removes it, another name= goes beside it"),
    (
        "no matches for kind|resource type",
        f"this Kubernetes has no KubeRay: install its operator, {KUBERAY_VERSION} or later",
    ),
    ("proxyconnect|proxy", "correct HTTPS_PROXY, or add the server of your cluster to NO_PROXY"),
    ("forbidden", "your Kubernetes user may not do this in kuberay.namespace; ask for the right, or name another"),
    ("unauthorized|logged in|credentials|certificate", "log in to the cluster again; `kubectl get pods` must work"),
    ("namespaces? .*not ?found", "create kuberay.namespace, or name another"),
    (
        "connect|refused|no such host|context|configuration|kubeconfig|timeout|timed out",
        "set KUBECONFIG to your cluster's file and its context; `kubectl get pods` must work",
    ),
)
# Of the seconds that a pod has to stop in, those left for Ray after the job.
_RAY_ITSELF_S = 5


def render(spec: ClusterSpec, command: Sequence[str], *, joins_ray: bool = True) -> dict[str, Any]:
    """The RayJob that runs `command`: a pure function of its arguments and of the version of Ray installed here.

    joins_ray: whether the command takes ray.address=; if not, it runs on the head alone.
    Raises ClusterError: the spec asks for nodes that this command cannot use.
    """
    groups = {role: group for role, group in spec.groups().items() if role != "head"}
    if groups and not joins_ray:
        raise ClusterError(f"{', '.join(groups)}: this job runs on one node, the head; take out the others")
    scales = any(group.max_nodes > group.nodes for group in groups.values())
    cluster: dict[str, Any] = {
        "rayVersion": importlib.metadata.version("ray"),
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "rayStartParams": {},
            "template": _pod(spec, spec.head, _HEAD),
        },
        "workerGroupSpecs": [
            {
                "groupName": role,
                "replicas": group.nodes,
                "minReplicas": group.nodes,
                "maxReplicas": max(group.max_nodes, group.nodes),
                "rayStartParams": {},
                "template": _pod(spec, group, "ray-worker"),
            }
            for role, group in groups.items()
        ],
    }
    if scales:
        cluster["enableInTreeAutoscaling"] = True
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": spec.name,
            "namespace": spec.kuberay.namespace,
            "labels": {"app.kubernetes.io/name": "autogaze"},
        },
        "spec": {
            # The operator passes the entrypoint on as it is, to one shell. A submitter pod would use `ray job submit`,
            # whose quoting the second shell does not undo.
            "submissionMode": "HTTPMode",
            "entrypoint": shlex.join(command),
            "backoffLimit": spec.kuberay.backoff_limit,
            "preRunningDeadlineSeconds": spec.timeouts.ready_s,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": spec.kuberay.ttl_s,
            "rayClusterSpec": cluster,
        },
    }


def _pod(spec: ClusterSpec, group: NodeGroup, name: str) -> dict[str, Any]:
    """The pod template of a group's nodes."""
    resources: dict[str, Any] = {"cpu": str(group.cpus), "memory": f"{group.memory_gb}G"}
    if group.gpus:
        resources[_GPU] = str(group.gpus)
    variables = {"RAY_USAGE_STATS_ENABLED": "0", **storage_variables(spec)}
    if name == _HEAD:  # which runs the job's driver; Ray's own three seconds are too few for a checkpoint
        variables["RAY_JOB_STOP_WAIT_TIME_S"] = str(max(1, spec.timeouts.grace_s - _RAY_ITSELF_S))
    container: dict[str, Any] = {
        "name": name,
        "image": spec.environment.image,
        # Requests equal limits: the pod can always use what Ray counts on.
        "resources": {"requests": dict(resources), "limits": resources},
    }
    pod: dict[str, Any] = {"terminationGracePeriodSeconds": spec.timeouts.grace_s, "containers": [container]}
    if spec.environment.tmp != "/tmp":  # noqa: S108
        variables["TMPDIR"] = spec.environment.tmp
        container["volumeMounts"] = [{"name": "tmp", "mountPath": spec.environment.tmp}]
        pod["volumes"] = [{"name": "tmp", "emptyDir": {}}]
    container["env"] = [{"name": key, "value": value} for key, value in variables.items()]
    if spec.storage.secret:
        container["envFrom"] = [{"secretRef": {"name": spec.storage.secret}}]
    if group.gpus:
        pod["tolerations"] = [{"key": _GPU, "operator": "Exists", "effect": "NoSchedule"}]
    if group.gpu_kind:
        label, equals, value = group.gpu_kind.partition("=")
        pod["nodeSelector"] = {label: value} if equals else {_GPU_KIND: group.gpu_kind}
    if spec.kuberay.service_account:
        pod["serviceAccountName"] = spec.kuberay.service_account
    return {"spec": pod}


def to_yaml(manifest: dict[str, Any]) -> str:
    """The manifest as a file for `kubectl create -f`."""
    head = f"# A RayJob for KubeRay, checked against its version {KUBERAY_VERSION}.\n"
    body: str = yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True, width=10**6)
    return head + body


def submit(spec: ClusterSpec, manifest: dict[str, Any]) -> str:
    """Create the RayJob; returns its name.

    Raises ClusterError: kubectl is missing, or Kubernetes refuses; also where a job of that name exists.
    """
    _kubectl(spec, "create", "-f", "-", given=to_yaml(manifest))
    return spec.name


def status(spec: ClusterSpec, job: str = "") -> str:
    """A line about the job, and the operator's message if it has one. Raises ClusterError."""
    report = _get(spec, job)
    words = [report.get("jobDeploymentStatus") or "New"]
    if report.get("jobStatus"):
        words.append(f"job {report['jobStatus']}")
    if report.get("failed"):
        words.append(f"{report['failed']} attempt(s) failed")
    if report.get("rayClusterName"):
        words.append(f"cluster {report['rayClusterName']}")
    line = f"{job or spec.name}: {', '.join(words)}"
    return f"{line}\n{report['message']}" if report.get("message") else line


def logs(spec: ClusterSpec, job: str = "") -> str:
    """What the job has printed so far, read from its head pod while that exists. Raises ClusterError."""
    report = _get(spec, job)
    cluster, submission = report.get("rayClusterName"), report.get("jobId")
    if not cluster or not submission:
        raise ClusterError(f"{job or spec.name}: not running yet; `autogaze cluster status` shows its state")
    labels = f"ray.io/cluster={cluster},ray.io/node-type=head"
    pod = _kubectl(spec, "get", "pod", "-l", labels, "-o", "name").strip()
    if not pod:
        raise ClusterError(f"{job or spec.name}: its head pod is gone, and the job's output with it; see kuberay.ttl_s")
    reading = ("ray", "job", "logs", "--address", "http://127.0.0.1:8265", submission)
    return _kubectl(spec, "exec", pod, "-c", _HEAD, "--", *reading)


def cancel(spec: ClusterSpec, job: str = "") -> None:
    """Delete the RayJob and its cluster. Raises ClusterError."""
    _kubectl(spec, "delete", "rayjob", job or spec.name)


def _get(spec: ClusterSpec, job: str) -> dict[str, Any]:
    """The `status` of a RayJob; {} while the operator has not seen it."""
    return dict(json.loads(_kubectl(spec, "get", "rayjob", job or spec.name, "-o", "json")).get("status") or {})


def _kubectl(spec: ClusterSpec, *words: str, given: str | None = None) -> str:
    if shutil.which("kubectl") is None:
        raise ClusterError("kubectl is not installed here: run this where it is")
    limit = () if words[0] == "exec" else ("--request-timeout", "60s")  # a long log may take its time
    command = ["kubectl", "--namespace", spec.kuberay.namespace, *limit, *words]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()] or ["no reason given"]
        hint = next((f"; {remedy}" for sign, remedy in _REMEDIES if re.search(sign, done.stderr, re.IGNORECASE)), "")
        raise ClusterError(f"kubectl {words[0]}: {lines[-1]}{hint}")
    return done.stdout
