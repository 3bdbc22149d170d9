"""Which connections the NetworkPolicies of every overlay admit: exactly the intended ones."""

import dataclasses
import unittest

from k8s_objects import NAMESPACE, OVERLAYS, Overlay, selects


@dataclasses.dataclass(frozen=True)
class Pod:
    name: str
    namespace: str = NAMESPACE
    labels: tuple = ()
    ports: tuple = ()  # of (name, protocol, number)

    def label_dict(self):
        return dict(self.labels)

    def namespace_labels(self):
        return {"kubernetes.io/metadata.name": self.namespace}


def outsider(name, namespace=NAMESPACE, ports=(), **labels):
    return Pod(name, namespace, tuple((key.replace("_", "-"), value) for key, value in labels.items()), ports)


REDIS = {"app.kubernetes.io/name": "redis-cluster"}
OUTSIDERS = [
    outsider("client", fourierkv_access="workers"),
    outsider("router", fourierkv_access="store"),
    outsider("stranger", ports=(("web", "TCP", 80),)),
    outsider("foreign client", "other", fourierkv_access="store"),
    outsider("dns", "kube-system", (("dns", "UDP", 53), ("dns-tcp", "TCP", 53)), k8s_app="kube-dns"),
    outsider("redis", "redis", (("redis", "TCP", 6379), ("bus", "TCP", 16379)), **REDIS),
    outsider("other redis", "other", (("redis", "TCP", 6379),), **REDIS),
    outsider("other system pod", "kube-system", (("dns", "UDP", 53),)),
    Pod("prometheus", "monitoring", (("app.kubernetes.io/name", "prometheus"),)),
    Pod("false prometheus", "other", (("app.kubernetes.io/name", "prometheus"),)),
    outsider("grafana", "monitoring"),
]


def peer_admits(peer, pod):
    if unknown := set(peer) - {"podSelector", "namespaceSelector"}:
        raise ValueError(f"policy peer: {unknown}")
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], pod.namespace_labels()):
            return False
    elif pod.namespace != NAMESPACE:
        return False
    return selects(peer.get("podSelector", {}), pod.label_dict())


def rule_admits(rule, side, other, port):
    name, protocol, number = port
    peers = rule.get(side)
    ports = rule.get("ports")
    if peers and not any(peer_admits(peer, other) for peer in peers):
        return False
    return not ports or any(p.get("protocol", "TCP") == protocol and p["port"] in (name, number) for p in ports)


def admitted(policies, pod, other, port, direction, side):
    """By the policies of one end: everything where none selects the pod, else what any of them admits."""
    if pod.namespace != NAMESPACE:
        return True
    mine = [
        policy["spec"]
        for policy in policies
        if direction in policy["spec"]["policyTypes"] and selects(policy["spec"]["podSelector"], pod.label_dict())
    ]
    rules = [rule for spec in mine for rule in spec.get(direction.lower(), [])]
    return not mine or any(rule_admits(rule, side, other, port) for rule in rules)


def connections(overlay):
    policies = overlay.of("NetworkPolicy")
    ours = [
        Pod(w.container["name"], labels=tuple(w.labels.items()), ports=tuple((n, "TCP", p) for n, p in w.ports.items()))
        for w in overlay.workloads()
    ]
    pods = ours + OUTSIDERS
    return {
        (source.name, target.name, port[0])
        for source in pods
        for target in pods
        for port in target.ports
        if source != target and (source in ours or target in ours)
        if admitted(policies, source, target, port, "Egress", "to")
        and admitted(policies, target, source, port, "Ingress", "from")
    }


class NetworkTest(unittest.TestCase):
    def test_exactly_the_intended_connections_are_admitted(self):
        intended = {
            ("prefill", "server", "grpc"),
            ("decode", "server", "grpc"),
            ("router", "server", "grpc"),
            ("router", "prefill", "grpc"),
            ("router", "decode", "grpc"),
            ("client", "prefill", "grpc"),
            ("client", "decode", "grpc"),
            ("prefill", "dns", "dns"),
            ("prefill", "dns", "dns-tcp"),
            ("decode", "dns", "dns"),
            ("decode", "dns", "dns-tcp"),
        }
        production = {
            ("prometheus", "server", "metrics"),
            ("server", "redis", "redis"),
            ("server", "dns", "dns"),
            ("server", "dns", "dns-tcp"),
        }
        for name in OVERLAYS:
            with self.subTest(name):
                self.assertEqual(connections(Overlay(name)), intended | (production if name == "production" else set()))

    def test_without_policies_everything_would_be_open(self):
        overlay = Overlay("dev")
        overlay.objects = [thing for thing in overlay.objects if thing["kind"] != "NetworkPolicy"]
        self.assertIn(("stranger", "server", "metrics"), connections(overlay))
        self.assertIn(("server", "stranger", "web"), connections(overlay))


if __name__ == "__main__":
    unittest.main()
