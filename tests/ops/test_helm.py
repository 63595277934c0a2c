"""The Helm chart: its objects are valid, match the service, and wrong values are refused."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.cli.chart_settings import OF_THE_CHART, with_settings
from service.settings import ENV_PREFIX, Settings
from tests.ops.exported import exported_series
from tests.ops.queries import metrics_of
from tests.ops.rendered_chart import CHART, container, helm, rendered, template, variables
from tests.support.repository import ROOT

SCHEMA = CHART / "values.schema.json"
KUBERNETES = "1.35"
CUSTOM = {"ScaledObject", "ServiceMonitor"}  # not in Kubernetes' schemas
KEDA = {"type": "keda", "keda": {"serverAddress": "http://prometheus:9090"}}
MATRIX: dict[str, dict[str, Any]] = {
    "defaults": {},
    "without settings": {"settings": None, "podAnnotations": None, "tolerations": None},
    "GPUs": {
        "gpu": {"count": 2, "runtimeClassName": "nvidia"},
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L4"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "resources": {"limits": None},
    },
    "keys and TLS": {
        "apiKeys": {"secret": "keys"},
        "tls": {"secret": "tls", "clientCaSecret": "ca"},
        "extraEnv": [{"name": "OTEL_SERVICE_NAME", "value": "1"}],
        "extraVolumes": [{"name": "token", "secret": {"secretName": "label-studio"}}],
        "extraVolumeMounts": [
            {"name": "token", "mountPath": "/etc/label-studio", "readOnly": True}
        ],
        "settings": {
            "label_studio": True,
            "label_studio_url": "http://label-studio:8080",
            "label_studio_token_file": "/etc/label-studio/token",
        },
        "networkPolicy": {"egress": [{"to": [{"podSelector": {}}]}]},
        "image": {"digest": "sha256:" + "0" * 64, "pullSecrets": ["registry"]},
    },
    "pvc, hpa": {
        "model": {"source": "pvc", "pvc": {"claimName": "models"}},
        "autoscaling": {"type": "hpa", "maxReplicas": 9},
        "podDisruptionBudget": {"maxUnavailable": "25%"},
    },
    "image volume, keda": {
        "model": {"source": "image", "image": {"reference": "registry.example/model:1"}},
        "autoscaling": KEDA,
        "metrics": {"port": 8002, "serviceMonitor": {"enabled": True, "labels": {"release": "p"}}},
        "networkPolicy": {
            "clients": [{"podSelector": {}}],
            "egress": [{"to": [{"podSelector": {}}], "ports": [{"port": 4318}]}],
        },
        "settings": {"otlp_endpoint": "http://collector:4318"},
    },
    "names that YAML reads as numbers and truth values": {
        "nameOverride": "123",
        "fullnameOverride": "true",
        "serviceAccount": {"name": "123"},
        "image": {"pullSecrets": ["123"]},
        "autoscaling": KEDA,
        "metrics": {"port": 8002, "serviceMonitor": {"enabled": True}},
    },
    "init container, few objects": {
        "model": {"source": "initContainer", "initContainer": {"image": "i", "args": ["x"]}},
        "podDisruptionBudget": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "serviceAccount": {"create": False},
        "service": {"type": "LoadBalancer", "httpPort": 80, "annotations": {"a": "true"}},
    },
}


def nested_keys(value: object, path: str = "") -> Iterator[str]:
    """Dotted paths of all values that are no maps with further ones."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from nested_keys(inner, f"{path}.{key}" if path else key)
    else:
        yield path


def test_helm_accepts_the_chart() -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_kubernetes_accepts_the_objects(values: dict[str, Any]) -> None:
    for kind, item in rendered(values).items():
        if kind not in CUSTOM:
            kubernetes_validate.validate(item, KUBERNETES, strict=True)
        assert item["metadata"]["namespace"] == "shop"


def test_the_schema_has_the_settings_of_the_service() -> None:
    text = SCHEMA.read_text(encoding="utf-8")
    assert text == with_settings(text), "run make docs"
    settings = set(json.loads(text)["properties"]["settings"]["properties"])
    assert settings | OF_THE_CHART == set(Settings.model_fields)


def test_settings_reach_the_service_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "max_body_bytes": 67_108_865,  # Helm reads numbers as float64
        "slots": 128,
        "warm_up_seconds": 0.5,
        "log_requests": True,
        "trusted_proxies": "10.0.0.0/8,::1",
        "root_path": "/vision",
        "explain": False,
        "cors_origins": None,
        "precision": None,
    }
    objects = rendered({"settings": given, "tls": {"secret": "t"}, "metrics": {"port": 8002}})
    names = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}
    assert set(variables(objects)) <= names
    for variable, text in variables(objects).items():
        monkeypatch.setenv(variable, text)
    settings = Settings()
    for name, value in given.items():
        default = Settings.model_fields[name].default
        assert getattr(settings, name) == (default if value is None else value)
    assert (settings.host, settings.http_port, settings.grpc_port) == ("0.0.0.0", 8000, 8001)
    assert settings.metrics_port == 8002
    ports = {port["name"]: port["containerPort"] for port in container(objects)["ports"]}
    assert ports == {"http": 8000, "grpc": 8001, "metrics": 8002}


REFUSED = {
    "an unknown value": ({"replica": 1}, "replica"),
    "an unknown nested value": ({"tls": {"certificate": "x"}}, "certificate"),
    "an unknown setting": ({"settings": {"max_batchsize": 4}}, "max_batchsize"),
    "a setting that the chart sets": ({"settings": {"http_port": 80}}, "http_port"),
    "a number as text": ({"settings": {"slots": "128"}}, "slots"),
    "text as a number": ({"settings": {"log_level": 1}}, "log_level"),
    "a number out of range": ({"settings": {"slots": 0}}, "slots"),
    "a port as text": ({"service": {"httpPort": "80"}}, "httpPort"),
    "a removed section": ({"tls": None}, "tls"),
    "a setting as a variable": ({"extraEnv": [{"name": "LITE_DETR_SLOTS"}]}, "extraEnv"),
    "a volume of the chart": (
        {"extraVolumes": [{"name": "tmp", "emptyDir": {}}]},
        "extraVolumes",
    ),
    "a volume of no kind": ({"extraVolumes": [{"name": "token"}]}, "extraVolumes"),
    "a mount without a path": ({"extraVolumeMounts": [{"name": "token"}]}, "mountPath"),
    "another selector": ({"podLabels": {"app.kubernetes.io/name": "x"}}, "invalid propertyName"),
    "an annotation that is no text": ({"podAnnotations": {"a": True}}, "podAnnotations"),
    "a path that leaves the volume": ({"model": {"path": "../x"}}, "path"),
    "no claim": ({"model": {"source": "pvc"}}, "claimName"),
    "no image of the model": ({"model": {"source": "image"}}, "reference"),
    "no init container": ({"model": {"source": "initContainer"}}, "image"),
    "no Prometheus": ({"autoscaling": {"type": "keda"}}, "serverAddress"),
    "half a GPU": ({"gpu": {"count": 0.5}}, "count"),
    "a quantity of words": ({"resources": {"limits": {"memory": "2 GB"}}}, "memory"),
    "client certificates without TLS": ({"tls": {"clientCaSecret": "ca"}}, "needs tls.secret"),
    "a port that is taken": ({"metrics": {"port": 8001}}, "must differ"),
    "one port twice": ({"service": {"grpcPort": 8000}}, "must differ"),
    "no room to scale": (
        {"autoscaling": {"type": "hpa", "minReplicas": 5}},
        "larger than autoscaling.maxReplicas",
    ),
    "metrics without a key": (
        {"apiKeys": {"secret": "k"}, "metrics": {"serviceMonitor": {"enabled": True}}},
        "needs a key with the scope metrics",
    ),
    "metrics without a certificate": (
        {
            "tls": {"secret": "t", "clientCaSecret": "c"},
            "metrics": {"serviceMonitor": {"enabled": True}},
        },
        "tlsConfig needs one",
    ),
    "a collector that cannot be reached": (
        {"settings": {"otlp_endpoint": "http://collector:4318"}},
        "needs networkPolicy.egress",
    ),
    "a Label Studio that cannot be reached": (
        {"settings": {"label_studio": True, "label_studio_url": "http://labels:8080"}},
        "needs networkPolicy.egress",
    ),
    "clients of a port that is not there": (
        {"networkPolicy": {"metricsClients": [{"podSelector": {}}]}},
        "needs metrics.port",
    ),
    "two models": (
        {"settings": {"model": "/x"}, "model": {"source": "pvc", "pvc": {"claimName": "m"}}},
        "exclude each other",
    ),
    "an update that cannot proceed": ({"rollingUpdate": {"maxSurge": "0%"}}, "both be 0"),
}


@pytest.mark.parametrize(("values", "reason"), REFUSED.values(), ids=REFUSED)
def test_refuses(values: dict[str, Any], reason: str) -> None:
    done = template(values)
    assert done.returncode != 0
    assert reason in done.stderr


def test_numbers_from_the_command_line_may_not_be_text() -> None:
    assert template(None, "--set-string", "settings.slots=128").returncode != 0
    assert template(None, "--set", "settings.slots=128").returncode == 0


@pytest.mark.parametrize(
    "release", ["a" * 53, "1st.release-9", "x.y-" + "b" * 48 + ".", "lite-detr-2"]
)
def test_names_of_any_release_are_valid_and_stay_distinct(release: str) -> None:
    values = {"metrics": {"port": 8002, "serviceMonitor": {"enabled": True}}, "autoscaling": KEDA}
    objects = rendered(values, release=release.rstrip("."))
    for item in objects.values():
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", item["metadata"]["name"])
        for value in item["metadata"]["labels"].values():
            assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", value)
    pod = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind in ("Service", "Service metrics"):
        assert objects[kind]["spec"]["selector"].items() <= pod.items()
    selected = objects["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
    assert selected.items() <= objects["Service metrics"]["metadata"]["labels"].items()
    assert not selected.items() <= objects["Service"]["metadata"]["labels"].items()
    name = objects["Service metrics"]["metadata"]["name"]
    [trigger] = objects["ScaledObject"]["spec"]["triggers"]
    assert f'service="{name}"' in trigger["metadata"]["query"]


def test_kubernetes_waits_for_the_drain() -> None:
    pod = rendered({"drain": {"delaySeconds": 7.5, "timeoutSeconds": 120}})["Deployment"]
    spec = pod["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == 8 + 120 + 10
    [found] = spec["containers"]
    assert "lifecycle" not in found
    env = {each["name"]: each["value"] for each in found["env"]}
    assert env["LITE_DETR_DRAIN_DELAY_SECONDS"] == "7.5"


def test_pods_have_no_rights_and_write_only_to_their_volumes() -> None:
    objects = rendered(MATRIX["keys and TLS"])
    spec = objects["Deployment"]["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert not spec["automountServiceAccountToken"]
    assert not spec["enableServiceLinks"]
    context = container(objects)["securityContext"]
    assert context["readOnlyRootFilesystem"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert not context["allowPrivilegeEscalation"]
    writable = {m["mountPath"] for m in container(objects)["volumeMounts"] if not m.get("readOnly")}
    assert writable == {"/tmp", "/home/lite-detr/.cache/lite-detr"}
    assert "subPath" not in json.dumps(objects)  # changes of Secrets would not reach the pod
    files = {path for name, path in variables(objects).items() if name.endswith("_FILE")}
    assert len(files) == 5
    mounted = [m["mountPath"] for m in container(objects)["volumeMounts"]]
    assert all(any(path.startswith(f"{folder}/") for folder in mounted) for path in files)


def test_probes_follow_tls() -> None:
    plain, tls = rendered(), rendered({"tls": {"secret": "t"}})
    mutual = rendered({"tls": {"secret": "t", "clientCaSecret": "c"}})
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert container(plain)[probe]["httpGet"] == {
            "path": path,
            "port": "http",
            "scheme": "HTTP",
        }
        assert container(tls)[probe]["httpGet"]["scheme"] == "HTTPS"
        assert container(mutual)[probe]["tcpSocket"] == {"port": "http"}


def test_each_gpu_gets_an_engine_unless_settings_say_otherwise() -> None:
    objects = rendered({"gpu": {"count": 3, "resource": "nvidia.com/mig-1g.10gb"}})
    assert variables(objects)["LITE_DETR_DEVICES"] == "cuda:0,cuda:1,cuda:2"
    limits = container(objects)["resources"]["limits"]
    assert limits == {"cpu": "2", "memory": "2Gi", "nvidia.com/mig-1g.10gb": 3}
    assert container(objects)["image"] == "lite-detr:cuda"
    chosen = variables(rendered({"gpu": {"count": 1}, "settings": {"devices": "cuda:0,cuda:0"}}))
    assert chosen["LITE_DETR_DEVICES"] == "cuda:0,cuda:0"
    assert "LITE_DETR_DEVICES" not in variables(rendered())


def test_autoscalers_keep_the_busy_share_at_its_target() -> None:
    hpa = rendered({"autoscaling": {"type": "hpa", "targetBusyPercent": 55}})
    [metric] = hpa["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "550m"}
    assert metric["pods"]["metric"]["name"] in exported_series()
    assert "replicas" not in hpa["Deployment"]["spec"]
    keda = rendered({"autoscaling": {**KEDA, "targetBusyPercent": 55}})
    [trigger] = keda["ScaledObject"]["spec"]["triggers"]
    assert trigger["metadata"]["threshold"] == "0.55"
    query = trigger["metadata"]["query"]
    assert query == 'sum(lite_detr_engine_busy_ratio{namespace="shop", service="r-lite-detr"})'
    assert metrics_of(query) <= exported_series()
    for objects in (hpa, keda):
        scaler = objects.get("HorizontalPodAutoscaler") or objects["ScaledObject"]
        assert scaler["spec"]["scaleTargetRef"]["name"] == objects["Deployment"]["metadata"]["name"]


def test_the_query_for_the_prometheus_adapter_is_valid() -> None:
    text = (CHART / "README.md").read_text(encoding="utf-8")
    adapter = text.partition("## Autoscaling")[2]
    [block] = re.findall(r"^```yaml\n(.*?)^```", adapter, re.MULTILINE | re.DOTALL)
    [rule] = yaml.safe_load(block)["rules"]["custom"]
    series = metrics_of(rule["seriesQuery"])
    assert series == {"lite_detr_engine_busy_ratio"}
    query = rule["metricsQuery"].replace("<<.Series>>", series.pop())
    query = query.replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'pod=~"a|b"')
    assert metrics_of(query) <= exported_series()


def test_the_metrics_are_on_the_port_that_is_scraped() -> None:
    monitor = {"enabled": True, "apiKey": {"secret": "key"}}
    shared = rendered({"metrics": {"serviceMonitor": monitor}, "apiKeys": {"secret": "keys"}})
    [endpoint] = shared["ServiceMonitor"]["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
    assert endpoint["authorization"]["credentials"] == {"name": "key", "key": "key"}
    own = rendered({"metrics": {"port": 8002, "serviceMonitor": {"enabled": True}}})
    assert own["ServiceMonitor"]["spec"]["endpoints"][0]["port"] == "metrics"
    rules = own["NetworkPolicy"]["spec"]["ingress"]
    assert [[port["port"] for port in rule["ports"]] for rule in rules] == [
        ["http", "grpc"],
        ["metrics"],
    ]
    assert own["ServiceMonitor"]["spec"]["jobLabel"] == "app.kubernetes.io/name"
    assert own["Service metrics"]["metadata"]["labels"]["app.kubernetes.io/name"] == "lite-detr"


def test_notes_warn_of_open_load_balancers() -> None:
    def notes(**values: Any) -> str:
        arguments = ["--dry-run=client", "-f", "-"]
        done = helm("install", "r", str(CHART), *arguments, stdin=yaml.safe_dump(values))
        assert done.returncode == 0, done.stderr
        return done.stdout.partition("NOTES:")[2]

    balancer = {"type": "LoadBalancer"}
    assert "WARNING" in notes(service=balancer)
    assert "WARNING" not in notes(service=balancer, apiKeys={"secret": "k"})
    assert "https://localhost" in notes(tls={"secret": "t"})


def test_the_readme_documents_every_value_and_only_existing_ones() -> None:
    text = (CHART / "README.md").read_text(encoding="utf-8")
    table = text.partition("## Values")[2].partition("## Examples")[0]
    documented = set()
    for row in re.findall(r"^\| (`[^|]+`) \|", table, re.MULTILINE):
        documented.update(re.findall(r"`([\w.]+)`", row))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    found = set(nested_keys(values))
    missing = {k for k in found if k not in documented and k.split(".")[0] != "resources"}
    assert not missing
    assert {key for key in documented if key != "resources"} <= found


def test_examples_of_the_readme_are_valid() -> None:
    text = (CHART / "README.md").read_text(encoding="utf-8")
    examples = text.partition("## Examples")[2].partition("## Autoscaling")[0]
    blocks = re.findall(r"^```yaml\n(.*?)^```", examples, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        for kind, item in rendered(yaml.safe_load(block)).items():
            if kind not in CUSTOM:
                kubernetes_validate.validate(item, KUBERNETES, strict=True)


def test_the_chart_has_the_version_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == project["version"]
