"""The renderer: what it does, and that it refuses what it does not do."""

import pathlib
import tempfile
import unittest

import kustomize

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: worker, labels: {a: x, b: y}}
spec:
  replicas: 3
  template:
    spec:
      containers:
        - {name: main, image: "old:1", args: [one, two], env: [{name: A, value: "1"}], ports: [{containerPort: 1}]}
        - {name: side, image: other}
      volumes:
        - {name: config, configMap: {name: settings}}
"""


class RendererTest(unittest.TestCase):
    def setUp(self):
        self._folder = tempfile.TemporaryDirectory()
        self.addCleanup(self._folder.cleanup)
        self.root = pathlib.Path(self._folder.name)
        self.write("base/kustomization.yaml", self.spec("resources: [worker.yaml]"))
        self.write("base/worker.yaml", DEPLOYMENT)

    def write(self, path, text):
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    @staticmethod
    def spec(text, kind="Kustomization"):
        return f"apiVersion: {kustomize.KINDS[kind]}\nkind: {kind}\n{text}\n"

    def render(self, text):
        self.write("overlay/kustomization.yaml", self.spec("resources: [../base]\n" + text))
        return kustomize.render(self.root / "overlay")

    def patched(self, patch):
        self.write("overlay/patch.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: worker}\n" + patch)
        (worker,) = self.render("patches: [{path: patch.yaml}]")
        return worker

    def test_patch_merges_named_items_replaces_lists_and_removes_nulls(self):
        worker = self.patched("""
spec:
  replicas: null
  template:
    spec:
      containers:
        - {name: main, args: [three], env: [{name: B, value: "2"}, {name: A, value: "9"}]}
      volumes:
        - {name: models, emptyDir: {}}
""")
        self.assertNotIn("replicas", worker["spec"])
        spec = kustomize.pod_spec(worker)
        main, side = spec["containers"]
        self.assertEqual(main["args"], ["three"])
        self.assertEqual(main["image"], "old:1")
        self.assertEqual(main["env"], [{"name": "B", "value": "2"}, {"name": "A", "value": "9"}])
        self.assertEqual(side, {"name": "side", "image": "other"})
        self.assertEqual([volume["name"] for volume in spec["volumes"]], ["models", "config"])
        self.assertEqual(worker["metadata"]["labels"], {"a": "x", "b": "y"})

    def test_images_are_found_by_name_alone(self):
        (worker,) = self.render("images: [{name: old, newName: registry/new, newTag: '2'}]")
        images = [container["image"] for container in kustomize.pod_spec(worker)["containers"]]
        self.assertEqual(images, ["registry/new:2", "other"])

    def test_namespace_is_set_on_everything_but_the_namespace(self):
        self.write("overlay/space.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: here}\n")
        self.write("overlay/kustomization.yaml", self.spec("namespace: here\nresources: [../base, space.yaml]"))
        worker, space = kustomize.render(self.root / "overlay")
        self.assertEqual(worker["metadata"]["namespace"], "here")
        self.assertNotIn("namespace", space["metadata"])

    def test_config_map_is_named_by_its_content_and_pods_follow(self):
        names = set()
        for text in ("threads = 1\n", "threads = 2\n"):
            self.write("overlay/settings.toml", text)
            worker, settings = self.render("configMapGenerator: [{name: settings, files: [settings.toml]}]")
            self.assertEqual(settings["data"], {"settings.toml": text})
            name = settings["metadata"]["name"]
            self.assertRegex(name, "^settings-[0-9bcdfghkmt]{10}$")
            self.assertEqual(kustomize.pod_spec(worker)["volumes"][0]["configMap"]["name"], name)
            names.add(name)
        self.assertEqual(len(names), 2)

    def test_component_changes_what_is_there_already(self):
        self.write("part/kustomization.yaml", self.spec("patches: [{path: p.yaml}]", "Component"))
        change = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: worker}\nspec: {replicas: 7}\n"
        self.write("part/p.yaml", change)
        (worker,) = self.render("components: [../part]")
        self.assertEqual(worker["spec"]["replicas"], 7)

    def test_what_is_not_understood_is_refused(self):
        self.write("overlay/settings.toml", "")
        for words, text in {
            "not understood: namePrefix": "namePrefix: x-",
            "not a Component": "components: [../base]",
            "a patch is a path": "patches: [{path: a.yaml, target: {kind: Deployment}}]",
            "cannot replace": "configMapGenerator: [{name: a, behavior: replace, files: [settings.toml]}]",
            "behavior merge": "configMapGenerator: [{name: a, behavior: merge, files: [settings.toml]}]",
            "not understood: literals": "configMapGenerator: [{name: a, literals: [a=b]}]",
            "not understood: digest": "images: [{name: old, digest: 'sha256:0'}]",
            "'images' stands twice": "images: []\nimages: []",
        }.items():
            with self.subTest(words), self.assertRaisesRegex(kustomize.RenderError, words):
                self.render(text)

    def test_patches_that_are_not_understood_are_refused(self):
        for words, patch in {
            "directive": "spec: {$patch: delete}",
            "'ports'": "spec: {template: {spec: {containers: [{name: main, ports: [{containerPort: 2}]}]}}}",
        }.items():
            with self.subTest(words), self.assertRaisesRegex(kustomize.RenderError, words):
                self.patched(patch)
        self.write("overlay/patch.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: nobody}\n")
        with self.assertRaisesRegex(kustomize.RenderError, "there is no .*nobody"):
            self.render("patches: [{path: patch.yaml}]")

    def test_objects_that_are_defined_twice_are_refused(self):
        self.write("overlay/again.yaml", DEPLOYMENT)
        self.write("overlay/kustomization.yaml", self.spec("resources: [../base, again.yaml]"))
        with self.assertRaisesRegex(kustomize.RenderError, "defined already"):
            kustomize.render(self.root / "overlay")


if __name__ == "__main__":
    unittest.main()
