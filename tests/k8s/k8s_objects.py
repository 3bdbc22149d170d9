"""What the tests of k8s/ share: the rendered overlays, and how Kubernetes reads labels, ports and quantities."""

import copy
import functools
import pathlib
import re
import tomllib

import kustomize

ROOT = pathlib.Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
OVERLAYS = {path.name: path for path in sorted((K8S / "overlays").iterdir())}
NAMESPACE = "fourierkv"

_UNITS = {"": 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_BYTES = {"b": 1, "kb": 2**10, "mb": 2**20, "gb": 2**30, "tb": 2**40}


def quantity(text):
    """Of Kubernetes: '500m' is 0.5, '1Gi' 2**30."""
    number, unit = re.fullmatch(r"([0-9]+)(m|Ki|Mi|Gi|Ti|)", str(text)).groups()
    return int(number) * _UNITS[unit]


def byte_count(text):
    """Of our flags: '4GB' is 4 * 2**30."""
    number, unit = re.fullmatch(r"([0-9]+)([a-z]+)", str(text).lower()).groups()
    return int(number) * _BYTES[unit]


def selects(selector, labels):
    """Whether a LabelSelector matches; an empty one matches everything."""
    if unknown := set(selector) - {"matchLabels", "matchExpressions"}:
        raise ValueError(f"selector: {unknown}")
    for expression in selector.get("matchExpressions", []):
        if expression["operator"] != "In":
            raise ValueError(f"selector: {expression['operator']}")
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


@functools.cache
def _rendered(name):
    return kustomize.render(OVERLAYS[name])


class Overlay:
    """The objects of one overlay, a copy of its own."""

    def __init__(self, name):
        self.name = name
        self.objects = copy.deepcopy(_rendered(name))

    def of(self, *kinds):
        return [thing for thing in self.objects if thing["kind"] in kinds]

    def workloads(self):
        return [Workload(self, thing) for thing in self.of("Deployment", "StatefulSet")]


class Workload:
    """A Deployment or StatefulSet of one container that runs one of our programs with one file of flags."""

    def __init__(self, overlay, thing):
        self.thing = thing
        self.name = thing["metadata"]["name"]
        self.labels = thing["spec"]["template"]["metadata"]["labels"]
        self.pod = kustomize.pod_spec(thing)
        (self.container,) = self.pod["containers"]
        (self.program,) = self.container["command"]
        self.ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        config_maps = {thing["metadata"]["name"]: thing for thing in overlay.of("ConfigMap")}
        (self.config_map,) = [config_maps[v["configMap"]["name"]] for v in self.pod["volumes"] if "configMap" in v]
        ((self.config_name, self.config_text),) = self.config_map["data"].items()
        self.config = tomllib.loads(self.config_text)

    def arguments(self):
        """Flags and values of the command line, which are given as "--flag", "value"."""
        args = self.container["args"]
        return dict(zip(args[::2], args[1::2], strict=True))
