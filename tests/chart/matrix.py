"""Values that people have: each row is one release that has to render, pass every check and be admitted."""

from typing import Final

from tests.chart.helm import Object

PLACED: Final[Object] = {
    "podLabels": {"team": "ci", "app.kubernetes.io/component": "mine"},
    "podAnnotations": {"note": "a: b"},
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "infra", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "infra", "operator": "Exists"}]}]
            }
        }
    },
    "spread": {"topologyKeys": ["topology.kubernetes.io/zone"], "whenUnsatisfiable": "DoNotSchedule"},
    "priorityClassName": "system-cluster-critical",
    "extraArgs": ["--log-format=console"],
    "extraEnv": [
        {"name": "HTTPS_PROXY", "value": "http://proxy.example.com:3128"},
        # In the place of the chart's own.
        {"name": "VMPOOL_LOG_LEVEL", "value": "warning"},
        {"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "words", "key": "one"}}},
    ],
    "extraVolumes": [{"name": "ca", "secret": {"secretName": "ca"}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}],
    "serviceAccount": {"name": "own", "annotations": {"example.com/role": "r"}},
}

MONITORED: Final[Object] = {
    "serviceMonitor": {"enabled": True, "labels": {"release": "p"}, "tlsConfig": {"serverName": "vmpool.example.com"}},
    "rules": {"enabled": True},
    "dashboard": {"enabled": True, "annotations": {"folder": "vmpool"}},
}

MATRIX: Final[dict[str, Object]] = {
    "defaults": {},
    "least": {
        "gateway": {"enabled": False},
        "simcloud": {"enabled": False},
        "admission": {"enabled": False},
        "operator": {"replicas": 1, "podDisruptionBudget": {"enabled": False}, "spread": {"enabled": False}},
    },
    "no rights": {"rbac": {"create": False}, "operator": {"serviceAccount": {"create": False, "name": "theirs"}}},
    "production": {
        "image": {"repository": "registry.example.com/ci/vmpool", "digest": f"sha256:{'0' * 64}"},
        "imagePullSecrets": [{"name": "registry"}],
        "installId": "blue-1",
        "simcloud": {"enabled": False},
        "networkPolicy": {
            "enabled": True,
            "apiServer": {"cidrs": ["10.0.0.1/32"], "ports": [6443]},
            "egress": [{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 443}]}],
            "gatewayEgress": [{"to": [{"ipBlock": {"cidr": "198.51.100.7/32"}}], "ports": [{"port": 636}]}],
            "gatewayFrom": [{"namespaceSelector": {"matchLabels": {"team": "ci"}}}],
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}],
        },
        "rbac": {"aggregate": True},
        "operator": {"settings": {"leaseSeconds": 30, "resyncSeconds": 86400}, "replicas": 3},
        "gateway": {
            "tls": {"secretName": "tls"},
            "settings": {
                "auth": "ldap",
                "ldapUrl": "ldaps://directory.example.com",
                "ldapBase": "ou=people,dc=example,dc=com",
                "rateEntries": 10_000_000,
                "tagFilters": {"owner": "^([a-z]+)$"},
            },
            "ldapPassword": {"secretName": "directory", "key": "bind"},
            "service": {"type": "LoadBalancer", "port": 443, "nodePort": 30443, "annotations": {"example.com/lb": "x"}},
        },
    },
    "users": {"gateway": {"settings": {"auth": "static"}, "users": {"secretName": "users", "key": "vmpool"}}},
    "everything placed": {
        "operator": PLACED,
        "gateway": {**PLACED, "serviceAccount": {"name": "own-gateway"}},
        "commonLabels": {"cost": "42", "app.kubernetes.io/instance": "mine"},
        "commonAnnotations": {"owner": "platform"},
        "log": {"level": "debug", "format": "console"},
    },
    "network closed": {"networkPolicy": {"enabled": True}},
    "one namespace": {"watchNamespace": "vmpool", "gateway": {"settings": {"authorization": "open"}}},
    "another namespace": {"watchNamespace": "default", "rbac": {"clusterRest": True}, "crds": {"enabled": False}},
    "another name": {"fullnameOverride": "machines", "nameOverride": "vms", "crds": {"keep": False}},
    "OpenShift": {
        "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
        "networkPolicy": {"enabled": True, "dnsPorts": [53, 5353]},
    },
    "monitored": {"monitoring": MONITORED, "gateway": {"tls": {"secretName": "tls"}}},
}
FOREIGN: Final = ("ServiceMonitor", "PrometheusRule")
"""Kinds that the Prometheus operator brings."""
