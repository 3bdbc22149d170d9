"""Renders a Kustomize folder without any tool, as far as k8s/ needs it; whatever else it meets it refuses.

Understood: resources, components, namespace, configMapGenerator (files; create or replace; names with a hash of the
content), strategic-merge patches in files, images. Where `kubectl kustomize` is installed, overlays_test.py checks that
both render the same.
"""

import copy
import hashlib
import json
import pathlib

import yaml

KINDS = {
    "Kustomization": "kustomize.config.k8s.io/v1beta1",
    "Component": "kustomize.config.k8s.io/v1alpha1",
}
FIELDS = {"apiVersion", "kind", "namespace", "resources", "components", "configMapGenerator", "patches", "images"}
CLUSTER_WIDE = {"Namespace"}
# By which field the items of a list are told apart when it is merged; other lists are replaced.
MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "topologySpreadConstraints": "topologyKey",
}
# Lists that Kubernetes merges in ways that are not needed here.
REFUSED_LISTS = {"ports", "imagePullSecrets", "hostAliases", "ephemeralContainers", "ownerReferences", "finalizers"}


class RenderError(Exception):
    pass


class UniqueKeysLoader(yaml.SafeLoader):
    """YAML lets a later key silently replace an earlier one; here that is an error."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise RenderError(f"{node.start_mark}: '{key}' stands twice")
        return super().construct_mapping(node, deep)


def load_documents(path):
    with open(path, encoding="utf-8") as file:
        return [document for document in yaml.load_all(file, UniqueKeysLoader) if document is not None]


def object_id(thing):
    return (thing["apiVersion"], thing["kind"], thing["metadata"]["name"])


def render(folder):
    """The objects of an overlay, a list of dicts."""
    objects = {}
    _accumulate(pathlib.Path(folder).resolve(), objects, "Kustomization")
    _add_hashes(objects)
    return list(objects.values())


def _accumulate(folder, objects, kind):
    documents = load_documents(folder / "kustomization.yaml")
    if len(documents) != 1:
        raise RenderError(f"{folder}: kustomization.yaml holds {len(documents)} documents")
    (spec,) = documents
    if spec.get("kind") != kind or spec.get("apiVersion") != KINDS[kind]:
        raise RenderError(f"{folder}: kustomization.yaml is not a {kind} of {KINDS[kind]}")
    if unknown := set(spec) - FIELDS:
        raise RenderError(f"{folder}: not understood: {', '.join(sorted(unknown))}")

    for name in spec.get("resources", []):
        path = folder / name
        if path.is_dir():
            added = {}
            _accumulate(path.resolve(), added, "Kustomization")
        else:
            added = _by_id(load_documents(path), path)
        if twice := set(added) & set(objects):
            raise RenderError(f"{path}: defined already: {sorted(twice)}")
        objects.update(added)
    for name in spec.get("components", []):
        _accumulate((folder / name).resolve(), objects, "Component")
    for generator in spec.get("configMapGenerator", []):
        _generate(folder, generator, objects)
    for patch in spec.get("patches", []):
        _patch(folder, patch, objects)
    if namespace := spec.get("namespace"):
        for thing in objects.values():
            if thing["kind"] not in CLUSTER_WIDE:
                thing["metadata"]["namespace"] = namespace
            elif thing["kind"] == "Namespace" and thing["metadata"]["name"] != namespace:
                raise RenderError(f"{folder}: renames the Namespace {thing['metadata']['name']}")
    for image in spec.get("images", []):
        _set_image(folder, image, objects)


def _by_id(documents, path):
    found = {}
    for document in documents:
        if object_id(document) in found:
            raise RenderError(f"{path}: {object_id(document)} stands twice")
        found[object_id(document)] = document
    return found


def _generate(folder, generator, objects):
    if unknown := set(generator) - {"name", "behavior", "files"}:
        raise RenderError(f"{folder}: configMapGenerator: not understood: {', '.join(sorted(unknown))}")
    behavior = generator.get("behavior", "create")
    if behavior not in ("create", "replace"):
        raise RenderError(f"{folder}: configMapGenerator: behavior {behavior}")
    key = ("v1", "ConfigMap", generator["name"])
    if (key in objects) != (behavior == "replace"):
        raise RenderError(f"{folder}: cannot {behavior} the ConfigMap {generator['name']}")
    data = {pathlib.PurePath(name).name: (folder / name).read_text(encoding="utf-8") for name in generator["files"]}
    old = objects.get(key, {"metadata": {"name": generator["name"]}})
    objects[key] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": old["metadata"], "data": data}


def _patch(folder, patch, objects):
    if set(patch) != {"path"}:
        raise RenderError(f"{folder}: a patch is a path alone, not {sorted(patch)}")
    for document in load_documents(folder / patch["path"]):
        key = object_id(document)
        if key not in objects:
            raise RenderError(f"{folder / patch['path']}: there is no {key}")
        objects[key] = merge(objects[key], document)


def merge(old, new):
    """Strategic merge: maps by key (null removes), lists of MERGE_KEYS by item, new ones first; else replaced."""
    if isinstance(new, dict) and isinstance(old, dict):
        merged = dict(old)
        for key, value in new.items():
            if key.startswith("$"):
                raise RenderError(f"the directive {key} is not understood")
            if value is None:
                merged.pop(key, None)
            elif key in REFUSED_LISTS and key in old:
                raise RenderError(f"patches of '{key}' are not understood")
            elif key in MERGE_KEYS and key in old:
                merged[key] = _merge_list(old[key], value, MERGE_KEYS[key])
            elif key in old:
                merged[key] = merge(old[key], value)
            else:
                merged[key] = copy.deepcopy(value)
        return merged
    return copy.deepcopy(new)


def _merge_list(old, new, key):
    changes = {item[key]: item for item in new}
    known = {item[key] for item in old}
    added = [copy.deepcopy(item) for item in new if item[key] not in known]
    return added + [merge(item, changes[item[key]]) if item[key] in changes else item for item in old]


def pod_spec(thing):
    """The pod spec of a workload, None of anything else."""
    return thing["spec"]["template"]["spec"] if thing["kind"] in ("Deployment", "StatefulSet") else None


def _set_image(folder, image, objects):
    if unknown := set(image) - {"name", "newName", "newTag"}:
        raise RenderError(f"{folder}: images: not understood: {', '.join(sorted(unknown))}")
    for thing in objects.values():
        for container in (pod_spec(thing) or {}).get("containers", []):
            name, _, tag = container["image"].partition(":")
            if name == image["name"]:
                name, tag = image.get("newName", name), image.get("newTag", tag)
                container["image"] = f"{name}:{tag}" if tag else name


def config_map_hash(config_map):
    """What kustomize appends to the name: the start of a SHA-256 of the content, in letters that spell no words."""
    text = json.dumps(
        {"kind": "ConfigMap", "name": "", "data": config_map["data"]},
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
    )
    for plain, escaped in (("&", "\\u0026"), ("<", "\\u003c"), (">", "\\u003e")):
        text = text.replace(plain, escaped)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    return digest.translate(str.maketrans("013ae", "ghkmt"))


def _add_hashes(objects):
    hashed = {}
    for thing in objects.values():
        if thing["kind"] == "ConfigMap":
            name = thing["metadata"]["name"]
            hashed[name] = f"{name}-{config_map_hash(thing)}"
            thing["metadata"]["name"] = hashed[name]
    for thing in objects.values():
        spec = pod_spec(thing) or {}
        if "configMapKeyRef" in json.dumps(spec) or "configMapRef" in json.dumps(spec):
            raise RenderError(f"{object_id(thing)}: ConfigMaps are understood in volumes alone")
        for volume in spec.get("volumes", []):
            if "projected" in volume:
                raise RenderError(f"{object_id(thing)}: projected volumes are not understood")
            if "configMap" in volume:
                name = volume["configMap"]["name"]
                volume["configMap"]["name"] = hashed.get(name, name)
