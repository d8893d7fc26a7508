"""Door: whether we speak with a peer, asked at every stream, question and answer, in and out."""

from collections.abc import Callable, Collection

from swarm.trust.introduction import Introductions
from swarm.trust.members import Members

# Why we do not speak with a peer, given what else is its machine's (None: unknown); empty if we do.
Refusal = Callable[[str, Collection[str] | None], str]


def open_to_all(_peer: str, _kin: Collection[str] | None) -> str:
    """The door of who has no reason to refuse anybody."""
    return ""


class Door:
    """What a channel and a board ask before they have to do with a peer."""

    def __init__(
        self,
        own: str,
        refusal: Refusal = open_to_all,
        members: Members | None = None,
        introductions: Introductions | None = None,
    ) -> None:
        """In a certified swarm `members` says who is one; elsewhere nobody shows a pass.

        There clients may say whose they are, which counts for lists of peers.
        """
        self._own = own
        self._refusal = refusal
        self._introductions = introductions or Introductions("")
        self.members = members

    def without_passes(self) -> "Door":
        """The same for who may have none, or one that counts no more."""
        return Door(self._own, self._refusal)

    @property
    def own_pass(self) -> bytes:
        """What we show beside the proof of the key; empty where no pass is needed."""
        return self.members.own_pass if self.members else self.introduction

    @property
    def introduction(self) -> bytes:
        """Our nodes' word that we are theirs, where nobody shows a pass; empty for most."""
        return b"" if self.members else self._introductions.own

    def problem_with(self, peer: str) -> str:
        """Why we do not speak with a peer; empty if we do, as far as is known without its pass."""
        if peer == self._own:
            return ""
        if self.members is None:
            return self._refusal(peer, self._introductions.kin_of(peer))
        kin = self.members.passes.kin_of(peer)
        return self._refusal(peer, kin) or self.members.problem_with(peer)

    @property
    def takes_introductions(self) -> bool:
        """Whether clients may say whose they are: a pass says that, where there are any."""
        return self.members is None

    def problem_at_first(self, peer: str) -> str:
        """Why we do not even hear who a peer is that turns to us; empty if we do."""
        if self.members or peer == self._own:
            return self.problem_with(peer)
        return self._refusal(peer, self._introductions.kin_of(peer) or None)

    def has_to_introduce(self, peer: str) -> bool:
        """Whether a peer shows its pass before it hears anything: in a certified swarm, once."""
        return self.members is not None and peer != self._own and not self.members.has_shown(peer)

    def is_revoked(self, peer: str) -> bool:
        """Whether a peer was a member, and is none any more."""
        return bool(self.members and self.members.problem_with(peer))

    def problem_of(self, peer: str, shown: bytes) -> str:
        """Why we do not speak with a peer that shows this pass, or introduction; empty if we do."""
        if shown and not self.members:
            self._introductions.hear(peer, shown)
        problem = self.problem_with(peer)
        if problem or self.members is None or peer == self._own:
            return problem
        return self.members.problem_of(peer, shown) or self.problem_with(peer)  # it has kin now

    def admits(self, peer: str, shown: bytes) -> bool:
        """Whether we speak with a peer that shows this pass."""
        return not self.problem_of(peer, shown)
