#!/usr/bin/env python3
"""Takes the definitions that our objects need out of the schemas of the PyPI package kubernetes-validate.

Development only; the tests read what it wrote. With a virtual environment of your own:
    python3 -m venv /tmp/schemas && /tmp/schemas/bin/pip install -r tests/k8s/schemas/requirements.txt
    /tmp/schemas/bin/python tests/k8s/schemas/extract.py 1.29.0 1.37.0
"""

import json
import pathlib
import sys

KINDS = (
    "api.apps.v1.Deployment",
    "api.apps.v1.StatefulSet",
    "api.autoscaling.v2.HorizontalPodAutoscaler",
    "api.core.v1.ConfigMap",
    "api.core.v1.Namespace",
    "api.core.v1.PersistentVolumeClaim",
    "api.core.v1.Secret",
    "api.core.v1.Service",
    "api.core.v1.ServiceAccount",
    "api.networking.v1.NetworkPolicy",
    "api.policy.v1.PodDisruptionBudget",
)


def bare(schema):
    """Without descriptions, and with references within one file."""
    if isinstance(schema, list):
        return [bare(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {}
    for key, value in schema.items():
        if key == "description" and isinstance(value, str):
            continue
        if key == "$ref":
            value = "#/$defs/" + value.rsplit("/", 1)[1]
        kept[key] = bare(value)
    return kept


def references(schema):
    if isinstance(schema, list):
        for item in schema:
            yield from references(item)
    elif isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"].rsplit("/", 1)[1]
        for value in schema.values():
            yield from references(value)


def extract(folder):
    everything = json.loads((folder / "_definitions.json").read_text())["$defs"]
    taken = {}
    wanted = ["io.k8s." + kind for kind in KINDS]
    while wanted:
        name = wanted.pop()
        if name not in taken:
            taken[name] = bare(everything[name])
            wanted.extend(references(taken[name]))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": taken}


def one_definition_a_line(schemas):
    lines = [f"{json.dumps(name)}: {json.dumps(schema, sort_keys=True)}" for name, schema in schemas["$defs"].items()]
    body = ",\n".join(sorted(lines))
    return f'{{"$schema": {json.dumps(schemas["$schema"])}, "$defs": {{\n{body}\n}}}}\n'


def main():
    import kubernetes_validate

    package = pathlib.Path(kubernetes_validate.__file__).parent
    for version in sys.argv[1:]:
        schemas = extract(package / "kubernetes-json-schema" / f"v{version}-local-strict")
        target = pathlib.Path(__file__).parent / f"kubernetes-{version}.json"
        target.write_text(one_definition_a_line(schemas))


if __name__ == "__main__":
    main()
