"""The images hold what the overlays run: programs, their libraries and the small model. Needs no container engine."""

import fnmatch
import os
import pathlib
import re
import subprocess
import unittest

from k8s_objects import K8S, OVERLAYS, ROOT, Overlay

BIN = pathlib.Path(os.environ["FOURIERKV_BIN_DIR"])
SCRIPT = K8S / "images" / "runtime_packages.sh"
DOCKERFILES = {path.name.split(".")[0]: path for path in (K8S / "images").glob("*.Dockerfile")}
IMAGES = {"fourierkv": "cpu", "fourierkv-cuda": "cuda"}


class Dockerfile:
    """Instructions of each stage, as (word, rest) with lines joined and comments left out."""

    def __init__(self, path):
        text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
        self.stages = []
        for line in text.splitlines():
            if line.strip():
                word, rest = line.split(None, 1)
                if word == "FROM":
                    self.stages.append([])
                self.stages[-1].append((word, " ".join(rest.split())))

    def of(self, stage, word):
        return [rest for name, rest in self.stages[stage] if name == word]

    def programs(self):
        (argument,) = [text for text in self.of(0, "ARG") if text.startswith("PROGRAMS=")]
        return argument.partition("=")[2].strip('"').split()


def in_context(path):
    """Whether .dockerignore lets a path, relative to the root, pass."""
    path = pathlib.PurePath(path)
    passes = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if any(fnmatch.fnmatch(str(part), line.removeprefix("!")) for part in (path, *path.parents)):
            passes = line.startswith("!")
    return passes


class ImagesTest(unittest.TestCase):
    def setUp(self):
        self.files = {name: Dockerfile(path) for name, path in DOCKERFILES.items()}
        self.assertEqual(set(self.files), set(IMAGES.values()))

    def test_what_is_copied_is_there_and_sent_to_the_builder(self):
        for name, file in self.files.items():
            for stage in file.stages:
                for word, rest in stage:
                    source = rest.split()[0]
                    if word == "COPY" and not source.startswith("--from="):
                        with self.subTest(image=name, source=source):
                            self.assertTrue((ROOT / source).exists())
                            self.assertTrue(source == "." or in_context(source))
                            self.assertEqual(len(rest.split()), 2)

    def test_all_that_the_build_reads_is_sent_to_the_builder(self):
        listed = (ROOT / "CMakeLists.txt").read_text()
        for path in re.findall(r"add_subdirectory\(([a-z0-9_]+)\)|include\((cmake/[A-Za-z.]+)\)", listed):
            self.assertTrue(in_context("".join(path)), path)
        for path in ("CMakeLists.txt", "CMakePresets.json", "bootstrap.sh", "k8s/images/runtime_packages.sh"):
            self.assertTrue((ROOT / path).exists() and in_context(path), path)
        for path in (".git", "build", "docs", "k8s/overlays", "k8s/base/server.yaml"):
            self.assertFalse(in_context(path), path)

    def test_programs_are_built_stripped_and_the_same_in_every_image(self):
        run = {workload.program for name in OVERLAYS for workload in Overlay(name).workloads()}
        programs = {name: file.programs() for name, file in self.files.items()}
        self.assertEqual(programs["cpu"], programs["cuda"])
        self.assertLessEqual(run, set(programs["cpu"]))
        for name, file in self.files.items():
            script = " ".join(file.of(0, "RUN"))
            self.assertIn(f"cmake --build --preset {name} --target $PROGRAMS", script)
            self.assertIn("for program in $PROGRAMS; do", script)
            self.assertIn(f"build/{name}/bin/$program", script)
            self.assertIn(f"cmake --preset {name} ", script)
            for program in programs[name]:
                self.assertTrue((BIN / program).exists(), program)

    def test_pods_run_as_the_user_of_the_image(self):
        for name in OVERLAYS:
            for workload in Overlay(name).workloads():
                image = IMAGES[workload.container["image"].rpartition("/")[2].partition(":")[0]]
                context = workload.pod["securityContext"]
                user = f"{context['runAsUser']}:{context['runAsGroup']}"
                self.assertEqual(self.files[image].of(-1, "USER"), [user])

    def test_models_are_in_the_image_or_mounted(self):
        for name in OVERLAYS:
            for workload in Overlay(name).workloads():
                if "model" not in workload.config:
                    continue
                with self.subTest(overlay=name, workload=workload.name):
                    model = pathlib.PurePath(workload.config["model"])
                    mounts = [pathlib.PurePath(m["mountPath"]) for m in workload.container["volumeMounts"]]
                    copied = {rest.split()[1]: rest.split()[0] for rest in self.files["cpu"].of(-1, "COPY")}
                    if not any(model.is_relative_to(mount) for mount in mounts):
                        self.assertTrue((ROOT / copied[str(model)] / "config.json").exists())
                        self.assertTrue((ROOT / copied[str(model)] / "model.safetensors").exists())

    def test_runtime_packages_are_exactly_those_that_hold_the_programs_libraries(self):
        programs = [BIN / program for program in self.files["cpu"].programs()]
        said = subprocess.run([SCRIPT, *programs], capture_output=True, text=True, check=True).stdout.split()
        self.assertEqual(said, sorted(set(said)))
        loaded = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=True).stdout
        libraries = {os.path.realpath(path) for path in re.findall(r"(/\S+) \(0x", loaded)}
        self.assertGreater(len(libraries), 20)
        held = subprocess.run(["dpkg-query", "-L", *said], capture_output=True, text=True, check=True).stdout
        held = {os.path.realpath(path) for path in held.splitlines() if ".so" in path}
        self.assertEqual(libraries - held, set())
        for package in said:
            files = subprocess.run(["dpkg-query", "-L", package], capture_output=True, text=True, check=True).stdout
            needed = {os.path.realpath(path) for path in files.splitlines()} & libraries
            self.assertTrue(needed, f"{package} is not needed")

    def test_runtime_packages_refuses_what_it_cannot_tell(self):
        strange = [([], "usage"), (["/no/such/program"], "No such file"), ([SCRIPT], "not a dynamic executable")]
        for arguments, words in strange:
            ended = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, check=False)
            self.assertNotEqual(ended.returncode, 0)
            self.assertIn(words, ended.stderr)
            self.assertEqual(ended.stdout, "")


if __name__ == "__main__":
    unittest.main()
