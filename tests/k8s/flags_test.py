"""The built programs take the command lines and files that the overlays give them."""

import contextlib
import os
import pathlib
import re
import select
import subprocess
import tempfile
import unittest

import throwaway_secrets
from k8s_objects import OVERLAYS, ROOT, Overlay

BIN = pathlib.Path(os.environ["FOURIERKV_BIN_DIR"])
MODEL = ROOT / "tests" / "data" / "needle-4m"
PATIENCE_SECONDS = 60


def known_flags(program):
    said = subprocess.run([BIN / program, "--help"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"(?<![-\w])--[a-z][-a-z0-9]*", said))


@contextlib.contextmanager
def running(program, arguments):
    """The address of a program that serves until the end of the `with`, and ends well then."""
    command = [BIN / program] + [text for pair in arguments.items() for text in pair]
    with tempfile.TemporaryFile("w+") as errors, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=errors, text=True
    ) as process:

        def failure(what):
            process.kill()
            status = process.wait()
            errors.seek(0)
            return AssertionError(f"{command} {what}, status {status}: {errors.read()}")

        ready, _, _ = select.select([process.stdout], [], [], PATIENCE_SECONDS)
        line = process.stdout.readline() if ready else ""
        if not line.startswith("listening "):
            if ready and not line:  # it is ending
                process.wait(PATIENCE_SECONDS)
            raise failure("does not serve")
        try:
            yield line.split()[1]
        except BaseException:
            process.kill()
            raise
        process.terminate()
        if process.wait(PATIENCE_SECONDS) != 0:
            raise failure("ended badly")


class FlagsTest(unittest.TestCase):
    def test_every_flag_is_one_of_the_program(self):
        for name in OVERLAYS:
            for workload in Overlay(name).workloads():
                with self.subTest(overlay=name, workload=workload.name):
                    known = known_flags(workload.program)
                    self.assertIn("--listen", known)
                    self.assertLessEqual(set(workload.arguments()), known)
                    self.assertLessEqual({f"--{key}" for key in workload.config}, known)

    def test_config_files_are_where_the_command_line_says(self):
        for name in OVERLAYS:
            for workload in Overlay(name).workloads():
                mounts = {mount["name"]: mount["mountPath"] for mount in workload.container["volumeMounts"]}
                self.assertEqual(workload.arguments()["--config"], f"{mounts['config']}/{workload.config_name}")

    def test_programs_start_with_their_files_and_end_when_asked(self):
        """With ports, devices, models and secrets of this machine instead; the command line wins over a file."""
        for name in OVERLAYS:
            with self.subTest(name), tempfile.TemporaryDirectory() as made:
                folder = pathlib.Path(made)
                throwaway_secrets.make(folder)
                workloads = {workload.program: workload for workload in Overlay(name).workloads()}

                def arguments(program, **changes):
                    workload = workloads[program]
                    config = folder / workload.config_name
                    config.write_text(workload.config_text)
                    flags = {**workload.arguments(), "--config": config}
                    for key, value in workload.config.items():
                        if str(value).startswith("0.0.0.0:"):
                            flags[f"--{key}"] = "0.0.0.0:0"
                        if str(value).startswith("/etc/") or key == "disk-path":
                            flags[f"--{key}"] = folder / pathlib.PurePath(value).name
                    return {**flags, **changes}

                with running("fourierkv-server", arguments("fourierkv-server")) as address:
                    port = address.rpartition(":")[2]
                    worker = {"--server": f"127.0.0.1:{port}", "--model": MODEL, "--device": "cpu"}
                    if "tls-ca" in workloads["fourierkv-decode"].config:
                        worker["--tls-server-name"] = throwaway_secrets.HOST
                    for program in ("fourierkv-prefill", "fourierkv-decode"):
                        with running(program, arguments(program, **worker)):
                            pass

    def test_a_key_that_is_no_flag_stops_a_program(self):
        for workload in Overlay("dev").workloads():
            with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
                config.write(workload.config_text + "no-such-flag = 1\n")
                config.flush()
                with self.assertRaisesRegex(AssertionError, "no-such-flag"):
                    with running(workload.program, {"--config": config.name}):
                        pass


if __name__ == "__main__":
    unittest.main()
