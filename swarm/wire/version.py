"""The protocol's version: which peers understand each other."""

PROTOCOL_VERSION = 2  # 1: plans by the highest term, records without a version


def works_with(version: int) -> bool:
    """Whether a peer of that version can be worked with: the same, or a neighbouring one.

    So a swarm is upgraded node by node, one version at a time.
    """
    return abs(version - PROTOCOL_VERSION) <= 1


def mismatch(version: int) -> str:
    """What to tell a person whose peers speak another version; empty if it works."""
    if works_with(version):
        return ""
    older = "the other side" if version < PROTOCOL_VERSION else "this program"
    versions = f"version {version} of the protocol, this program {PROTOCOL_VERSION}"
    return f"The other side speaks {versions}: update {older}."
