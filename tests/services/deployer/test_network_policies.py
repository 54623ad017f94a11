"""Who reaches the pods of an app, and whom they reach, as the policies of its namespace say."""

from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from seedwork.chassis.settings import misconfigured
from services.deployer.adapters.kubernetes.objects import Shape, surroundings
from services.deployer.settings import DeployerSettings


def policies(shape: Shape) -> dict[str, Mapping[str, Any]]:
    made = surroundings("knarr-shop", {}, shape)
    return {each["metadata"]["name"]: each["spec"] for each in made if each["kind"] == "NetworkPolicy"}


def test_strangers_reach_the_http_port_of_web_and_no_other() -> None:
    """A port for debugging or metrics beside it is not open to the cluster."""
    made = policies(Shape(installation="knarr"))
    (open_to_all,) = (each for each in made["allow-web"]["ingress"] if "from" not in each)
    assert open_to_all["ports"] == [{"protocol": "TCP", "port": "http"}]
    for name, policy in made.items():
        others = [each for each in policy.get("ingress", ()) if "from" not in each and "ports" not in each]
        assert others == [], name


def test_only_the_deployer_reaches_a_pod_that_reads_and_writes_a_volume() -> None:
    """Beside the app's own pods, which have the volume themselves."""
    policy = policies(Shape(installation="knarr"))["allow-storage"]
    assert policy["podSelector"] == {"matchLabels": {"knarr.io/step": "storage"}}
    ((source,),) = (each["from"] for each in policy["ingress"])
    assert source["podSelector"]["matchLabels"]["app.kubernetes.io/name"] == "deployer"


def test_port_53_leads_to_the_resolvers_of_the_cluster_and_to_nobody_else() -> None:
    """Data leaves by DNS, too."""
    made = policies(Shape(installation="knarr", dns_networks=("169.254.20.10/32",)))
    ways = [each for policy in made.values() for each in policy.get("egress", ())]
    (to_resolvers,) = (each for each in ways if "ports" in each)
    assert to_resolvers["to"] == [
        {"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}},
        {"ipBlock": {"cidr": "169.254.20.10/32"}},
    ]
    assert all(each.get("to") for each in ways)


def test_the_networks_of_clusters_are_closed_unless_a_setting_opens_them() -> None:
    """Carrier-grade addresses among them, which some clouds give to pods and nodes."""
    settings = DeployerSettings()
    made = policies(Shape(installation="knarr", egress_except=settings.kubernetes_egress_except))
    ((to,),) = (each["to"] for each in made["allow-internet"]["egress"])
    assert {"10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16"} <= set(to["ipBlock"]["except"])


def test_what_is_no_network_is_refused_by_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, not by the cluster at the first deployment."""
    monkeypatch.setenv("KNARR_KUBERNETES_EGRESS_EXCEPT", "10.0.0.0/8,everything")
    with pytest.raises(ValidationError) as caught:
        DeployerSettings()
    assert "KNARR_KUBERNETES_EGRESS_EXCEPT" in misconfigured(caught.value).message
