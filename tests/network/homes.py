"""Homes: hosts on private addresses behind a router that masquerades, as most volunteers have it.

The router is the kernel's (nftables). It lets in what answers a connection from inside, and drops
every new one from outside.
"""

from dataclasses import dataclass
from enum import StrEnum

from tests.network.hosts import Host, Network
from tests.network.namespaces import run, run_in

WAN, LAN = "eth0", "eth1"  # of a router, in the order in which it is attached
# old connections die when they are forgotten: no packet in their middle opens them again
STRICT = "net.netfilter.nf_conntrack_tcp_loose"
RULES = """
table ip home
delete table ip home
table ip home {{
  chain leaving {{
    type nat hook postrouting priority 100
    oifname "{wan}" masquerade {ports}
  }}
  chain through {{
    type filter hook forward priority 0
    ct state invalid drop
    iifname "{wan}" ct state established,related accept
    iifname "{wan}" drop
  }}
  chain own {{
    type filter hook input priority 0
    iifname "{wan}" ct state established,related accept
    iifname "{wan}" drop
  }}
}}
"""
CUT = """
table inet cut
delete table inet cut
table inet cut {{
  chain inward {{
    type filter hook prerouting priority -400
    {inward}
  }}
  chain outward {{
    type filter hook postrouting priority 400
    {outward}
  }}
}}
"""


class Ports(StrEnum):
    """Which port a router gives a connection from inside, in nftables' words."""

    KEPT = ""
    RANDOM = "random"
    FULLY_RANDOM = "fully-random"


@dataclass(frozen=True, slots=True)
class Home:
    """A network behind a router with one public address; `Laboratory.attach` puts hosts on it."""

    router: Host
    network: Network
    address: str  # the router's, on the outer network

    def translate(self, ports: Ports) -> None:
        """Let the router choose ports so, for connections from now on."""
        self._load(RULES.format(wan=WAN, ports=ports.value))

    def cut(self, *, inward: bool = True, outward: bool = True) -> None:
        """Let nothing in from outside any more, nothing out, or neither."""
        drops = {"inward": f'iifname "{WAN}" drop', "outward": f'oifname "{WAN}" drop'}
        wanted = {"inward": inward, "outward": outward}
        self._load(CUT.format(**{way: drops[way] if wanted[way] else "" for way in drops}))

    def mend(self) -> None:
        """End the cut."""
        self._load(CUT.format(inward="", outward=""))

    def forget(self) -> None:
        """Let the router forget every connection through it, as one that starts again does."""
        for state in ("down", "up"):  # masquerading ends with its device
            run("ip", "-n", self.router.namespace, "link", "set", WAN, state)

    def _load(self, rules: str) -> None:
        run_in(self.router.namespace, "nft", "-f", "-", text=rules)


def open_router(router: Host) -> None:
    """Let a host pass packets on."""
    for name in ("net.ipv4.ip_forward=1", f"{STRICT}=0"):
        key, _, value = name.partition("=")
        path = f"/proc/sys/{key.replace('.', '/')}"
        run_in(router.namespace, "sh", "-c", f"echo {value} > {path}")
