"""Every pod of every overlay is restricted, probed, bounded, drained and found, as its flags say."""

import functools
import unittest

from k8s_objects import OVERLAYS, Overlay, byte_count, quantity, selects

USER = 65532
PROGRAMS = {"fourierkv-server", "fourierkv-prefill", "fourierkv-decode"}
VOLUMES = {"configMap", "persistentVolumeClaim", "secret", "emptyDir"}
SPARE_SECONDS = 5


def for_each_workload(test):
    """Makes a test of one workload a test of all of every overlay, each reported for itself."""

    @functools.wraps(test)
    def tests(self):
        for name in OVERLAYS:
            overlay = Overlay(name)
            workloads = overlay.workloads()
            self.assertEqual({workload.program for workload in workloads}, PROGRAMS)
            for workload in workloads:
                with self.subTest(overlay=name, workload=workload.name):
                    test(self, overlay, workload)

    return tests


class WorkloadsTest(unittest.TestCase):
    @for_each_workload
    def test_pods_are_restricted(self, overlay, workload):
        pod, container = workload.pod, workload.container
        self.assertIs(pod["automountServiceAccountToken"], False)
        self.assertIs(pod["enableServiceLinks"], False)
        self.assertEqual(pod["serviceAccountName"], workload.name)
        (account,) = [a for a in overlay.of("ServiceAccount") if a["metadata"]["name"] == workload.name]
        self.assertIs(account["automountServiceAccountToken"], False)
        for field in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
            self.assertNotIn(field, pod)
        self.assertIs(pod["securityContext"]["runAsNonRoot"], True)
        self.assertEqual(pod["securityContext"]["runAsUser"], USER)
        self.assertEqual(pod["securityContext"]["runAsGroup"], USER)
        self.assertEqual(pod["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
        self.assertEqual(
            container["securityContext"],
            {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
        )
        for volume in pod["volumes"]:
            self.assertEqual(len(set(volume) & VOLUMES), 1, volume)

    def test_namespace_enforces_the_same(self):
        for name in OVERLAYS:
            (space,) = Overlay(name).of("Namespace")
            self.assertEqual(space["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted")

    @for_each_workload
    def test_volumes_are_mounted_once_and_only_the_data_can_be_written(self, _, workload):
        claims = [claim["metadata"]["name"] for claim in workload.thing["spec"].get("volumeClaimTemplates", [])]
        volumes = [volume["name"] for volume in workload.pod["volumes"]] + claims
        mounts = workload.container["volumeMounts"]
        self.assertEqual(sorted(mount["name"] for mount in mounts), sorted(volumes))
        self.assertEqual([mount["name"] for mount in mounts if not mount.get("readOnly")], claims)
        for volume in workload.pod["volumes"]:
            if "persistentVolumeClaim" in volume:
                self.assertIs(volume["persistentVolumeClaim"]["readOnly"], True)
        if claims:
            self.assertEqual(workload.pod["securityContext"]["fsGroup"], USER)

    @for_each_workload
    def test_probes_ask_the_port_for_them(self, _, workload):
        """Which is never encrypted: probes could not read it."""
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            # Without a service the health of the whole server is asked for.
            self.assertEqual(workload.container[kind]["grpc"], {"port": workload.ports["health"]}, kind)
        startup = workload.container["startupProbe"]
        patience = startup["periodSeconds"] * startup["failureThreshold"]
        self.assertGreater(patience, 2 * workload.config.get("connect-timeout", 30))

    @for_each_workload
    def test_ports_are_those_that_are_listened_on(self, _, workload):
        flags = {"grpc": "listen", "health": "health-listen", "metrics": "metrics"}
        listened = {port: workload.config[flag] for port, flag in flags.items() if flag in workload.config}
        self.assertEqual({port: f"0.0.0.0:{number}" for port, number in workload.ports.items()}, listened)

    @for_each_workload
    def test_calls_are_encrypted_and_authenticated_in_production(self, overlay, workload):
        flags = {"tls-cert", "tls-key", "auth-keys", "auth-audience"}
        if workload.program == "fourierkv-server":
            flags |= {"tls-client-ca"}
        else:
            flags |= {"tls-ca", "token-file"}
        if overlay.name == "production":
            self.assertLessEqual(flags, set(workload.config))
            self.assertNotIn("insecure", workload.config)
        else:
            self.assertIs(workload.config["insecure"], True)
            self.assertEqual(flags & set(workload.config), set())

    @for_each_workload
    def test_files_in_flags_are_in_secrets_that_the_pod_alone_reads(self, _, workload):
        secrets = {volume["name"]: volume["secret"] for volume in workload.pod["volumes"] if "secret" in volume}
        folders = {mount["mountPath"] for mount in workload.container["volumeMounts"] if mount["name"] in secrets}
        files = [value for value in workload.config.values() if str(value).startswith("/etc/")]
        self.assertEqual({file.rpartition("/")[0] for file in files}, folders)
        for secret in secrets.values():
            self.assertEqual(secret["defaultMode"], 0o440)
            self.assertEqual(workload.pod["securityContext"]["fsGroup"], USER)

    @for_each_workload
    def test_memory_and_cpus_are_bounded_and_the_flags_know_it(self, _, workload):
        requests = workload.container["resources"]["requests"]
        limits = workload.container["resources"]["limits"]
        self.assertEqual(requests["memory"], limits["memory"])
        self.assertLessEqual(quantity(requests["cpu"]), quantity(limits["cpu"]))
        # Threads beyond the limit would only be throttled.
        self.assertEqual(workload.config["threads"], quantity(limits["cpu"]))
        if workload.program == "fourierkv-server":
            budgets = byte_count(workload.config["memory"]) + byte_count(workload.config["scratch-memory"])
            calls = int(workload.config.get("max-calls", 512))  # a quarter more wait outside
            self.assertGreaterEqual(quantity(limits["memory"]), 1.1 * budgets + 2**28 + 1.25 * calls * 2**20)

    def test_the_disk_has_room_for_what_may_be_on_it(self):
        for name in OVERLAYS:
            (server,) = [workload for workload in Overlay(name).workloads() if "disk-path" in workload.config]
            (claim,) = server.thing["spec"]["volumeClaimTemplates"]
            storage = quantity(claim["spec"]["resources"]["requests"]["storage"])
            self.assertGreaterEqual(storage, byte_count(server.config["disk-bytes"]) + 2**30)
            (mount,) = [m for m in server.container["volumeMounts"] if m["name"] == claim["metadata"]["name"]]
            # Not the root of a file system, which has folders of its own.
            self.assertTrue(server.config["disk-path"].startswith(mount["mountPath"] + "/"))

    def test_servers_are_many_only_where_they_share_a_tier(self):
        for name in OVERLAYS:
            (server,) = [w for w in Overlay(name).workloads() if w.program == "fourierkv-server"]
            self.assertEqual(server.thing["spec"]["replicas"], 2 if "redis" in server.config else 1)
            self.assertEqual("redis" in server.config, name == "production")

    def test_disks_are_encrypted_in_production(self):
        for name in OVERLAYS:
            (server,) = [w for w in Overlay(name).workloads() if w.program == "fourierkv-server"]
            self.assertEqual("disk-key-file" in server.config, name == "production")

    @for_each_workload
    def test_pods_have_the_time_to_drain(self, _, workload):
        (sleep, seconds) = workload.container["lifecycle"]["preStop"]["exec"]["command"]
        self.assertEqual(sleep, "sleep")
        needed = int(seconds) + workload.config["drain-seconds"] + SPARE_SECONDS
        self.assertGreaterEqual(workload.pod["terminationGracePeriodSeconds"], needed)

    @for_each_workload
    def test_selectors_find_exactly_their_pods(self, overlay, workload):
        self.assertEqual(workload.thing["spec"]["selector"], {"matchLabels": workload.labels})
        for constraint in workload.pod["topologySpreadConstraints"]:
            self.assertEqual(constraint["labelSelector"], {"matchLabels": workload.labels})
        budgets = [b for b in overlay.of("PodDisruptionBudget") if selects(b["spec"]["selector"], workload.labels)]
        self.assertEqual([budget["metadata"]["name"] for budget in budgets], [workload.name])

    def test_services_find_the_pods_of_one_workload_and_their_ports(self):
        for name in OVERLAYS:
            overlay = Overlay(name)
            served = {}
            for service in overlay.of("Service"):
                selector = {"matchLabels": service["spec"]["selector"]}
                found = [w for w in overlay.workloads() if selects(selector, w.labels)]
                self.assertEqual(len(found), 1, service)
                for port in service["spec"]["ports"]:
                    self.assertEqual(port["port"], found[0].ports[port["targetPort"]])
                    self.assertEqual(port["name"], port["targetPort"])
                served[service["metadata"]["name"]] = found[0]
            for workload in overlay.workloads():
                if "serviceName" in workload.thing["spec"]:
                    self.assertIs(served[workload.thing["spec"]["serviceName"]].thing, workload.thing)
                if "server" in workload.config:
                    host, port = workload.config["server"].split(":")
                    self.assertEqual(served[host].program, "fourierkv-server")
                    self.assertEqual(served[host].ports["grpc"], int(port))

    @for_each_workload
    def test_gpus_are_asked_for_where_the_program_uses_one(self, overlay, workload):
        gpu = overlay.name == "gpu" and workload.program != "fourierkv-server"
        limits = workload.container["resources"]["limits"]
        self.assertEqual(limits.get("nvidia.com/gpu"), "1" if gpu else None)
        self.assertEqual(workload.arguments().get("--device", "cpu"), "cuda" if gpu else "cpu")
        self.assertEqual("fourierkv-cuda:" in workload.container["image"], gpu)
        self.assertEqual("nodeSelector" in workload.pod, gpu)
        self.assertEqual("tolerations" in workload.pod, gpu)

    def test_autoscalers_own_the_replicas_of_what_they_scale(self):
        for name in OVERLAYS:
            overlay = Overlay(name)
            scalers = overlay.of("HorizontalPodAutoscaler")
            scaled = {scaler["spec"]["scaleTargetRef"]["name"]: scaler for scaler in scalers}
            self.assertEqual(set(scaled), {"fourierkv-prefill", "fourierkv-decode"} if name == "production" else set())
            for workload in overlay.workloads():
                self.assertEqual("replicas" in workload.thing["spec"], workload.name not in scaled)
            for target, scaler in scaled.items():
                (workload,) = [w for w in overlay.workloads() if w.name == target]
                reference = scaler["spec"]["scaleTargetRef"]
                self.assertEqual(reference["kind"], workload.thing["kind"])
                self.assertEqual(reference["apiVersion"], workload.thing["apiVersion"])
                # A node can be emptied while the others serve.
                self.assertGreaterEqual(scaler["spec"]["minReplicas"], 2)
                drained = workload.pod["terminationGracePeriodSeconds"]
                self.assertGreater(scaler["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"], drained)

    def test_metrics_are_scraped_from_every_server_once(self):
        for name in OVERLAYS:
            overlay = Overlay(name)
            monitors = overlay.of("ServiceMonitor")
            self.assertEqual(len(monitors), 1 if name == "production" else 0)
            for monitor in monitors:
                endpoints = [(endpoint["port"], endpoint["path"]) for endpoint in monitor["spec"]["endpoints"]]
                self.assertEqual(endpoints, [("metrics", "/metrics")])
                scraped = [
                    service["metadata"]["name"]
                    for service in overlay.of("Service")
                    if selects(monitor["spec"]["selector"], service["metadata"]["labels"])
                    and "metrics" in [port["name"] for port in service["spec"]["ports"]]
                ]
                self.assertEqual(scraped, ["fourierkv-server-pods"])


if __name__ == "__main__":
    unittest.main()
