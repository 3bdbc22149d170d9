"""Every overlay renders to objects that Kubernetes accepts."""

import copy
import json
import pathlib
import re
import shutil
import subprocess
import unittest

import jsonschema
import yaml

import kustomize
from k8s_objects import NAMESPACE, OVERLAYS, ROOT, Overlay

SCHEMAS = pathlib.Path(__file__).parent / "schemas"
SERVICE_MONITOR = json.loads((SCHEMAS / "servicemonitor.json").read_text())
NAME = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"


class Kubernetes:
    """One version's schemas."""

    def __init__(self, path):
        self.document = json.loads(path.read_text())
        self.by_kind = {}
        for name, schema in self.document["$defs"].items():
            for kind in schema.get("x-kubernetes-group-version-kind", []):
                version = f"{kind['group']}/{kind['version']}" if kind["group"] else kind["version"]
                self.by_kind[version, kind["kind"]] = name

    def errors(self, thing):
        key = (thing["apiVersion"], thing["kind"])
        if key == ("monitoring.coreos.com/v1", "ServiceMonitor"):
            schema = SERVICE_MONITOR
        elif key in self.by_kind:
            schema = {**self.document, "$ref": "#/$defs/" + self.by_kind[key]}
        else:
            return [f"{key} is unknown"]
        found = jsonschema.Draft202012Validator(schema).iter_errors(thing)
        return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in found]


VERSIONS = {path.stem: Kubernetes(path) for path in sorted(SCHEMAS.glob("kubernetes-*.json"))}


def nulls(thing, path=""):
    """Paths of values that are null: Kubernetes accepts them, but they say nothing."""
    if thing is None:
        yield path
    elif isinstance(thing, dict):
        for key, value in thing.items():
            yield from nulls(value, f"{path}.{key}")
    elif isinstance(thing, list):
        for index, value in enumerate(thing):
            yield from nulls(value, f"{path}[{index}]")


class SchemaTest(unittest.TestCase):
    def test_every_object_of_every_overlay_is_valid(self):
        self.assertGreaterEqual(len(VERSIONS), 2)
        self.assertEqual(set(OVERLAYS), {"dev", "gpu", "production"})
        for name in OVERLAYS:
            for thing in Overlay(name).objects:
                for version, kubernetes in VERSIONS.items():
                    with self.subTest(overlay=name, version=version, id=kustomize.object_id(thing)):
                        self.assertEqual(kubernetes.errors(thing), [])
                        self.assertEqual(list(nulls(thing)), [])
                        self.assertRegex(thing["metadata"]["name"], f"^{NAME}$")

    def test_mistakes_are_found(self):
        (server,) = Overlay("dev").of("StatefulSet")
        kubernetes = VERSIONS["kubernetes-1.29.0"]
        for mistake, words in [
            ({"livenessProbes": {}}, "livenessProbes"),
            ({"image": 7}, "7 is not of type"),
            ({"readinessProbe": {"grpc": {"service": "x"}}}, "'port' is a required property"),
            ({"ports": [{"containerPort": "7070"}]}, "'7070' is not of type"),
        ]:
            with self.subTest(mistake):
                broken = copy.deepcopy(server)
                kustomize.pod_spec(broken)["containers"][0].update(mistake)
                self.assertIn(words, "\n".join(kubernetes.errors(broken)))
        self.assertEqual(kubernetes.errors({"apiVersion": "apps/v1beta1", "kind": "Deployment"}),
                         ["('apps/v1beta1', 'Deployment') is unknown"])

    def test_everything_lives_in_one_namespace(self):
        for name in OVERLAYS:
            overlay = Overlay(name)
            self.assertEqual([space["metadata"]["name"] for space in overlay.of("Namespace")], [NAMESPACE])
            for thing in overlay.objects:
                if thing["kind"] != "Namespace":
                    self.assertEqual(thing["metadata"]["namespace"], NAMESPACE, kustomize.object_id(thing))

    def test_images_of_releases_carry_the_version(self):
        version = re.search(r"project\(fourierkv VERSION ([0-9.]+)", (ROOT / "CMakeLists.txt").read_text()).group(1)
        for name in OVERLAYS:
            tags = {workload.container["image"].rpartition(":")[2] for workload in Overlay(name).workloads()}
            self.assertEqual(tags, {"dev" if name == "dev" else version})


class KubectlTest(unittest.TestCase):
    """Our renderer against the original, where that is at hand."""

    def setUp(self):
        kubectl = shutil.which("kubectl")
        said = kubectl and subprocess.run([kubectl, "version", "--client"], capture_output=True, text=True, check=False)
        version = said and re.search(r"Kustomize Version: v([0-9]+)", said.stdout)
        if not version or int(version.group(1)) < 5:
            self.skipTest("there is no kubectl with Kustomize 5")
        self.kubectl = kubectl

    def test_renders_the_same(self):
        for name, path in OVERLAYS.items():
            with self.subTest(name):
                said = subprocess.run([self.kubectl, "kustomize", path], capture_output=True, text=True, check=True)
                theirs = {kustomize.object_id(thing): thing for thing in yaml.safe_load_all(said.stdout)}
                ours = {kustomize.object_id(thing): thing for thing in Overlay(name).objects}
                self.assertEqual(ours, theirs)


if __name__ == "__main__":
    unittest.main()
