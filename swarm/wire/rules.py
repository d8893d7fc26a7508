"""Rules of the wire: why a stage ends or refuses a session, and what that means to its client."""

from enum import StrEnum


class FailCode(StrEnum):
    """The `code` of a FAIL; one that a reader does not know counts as a refusal for good."""

    UNKNOWN_SESSION = "unknown_session"  # nobody opened it here, or it was idle for too long
    STALE_EPOCH = "stale_epoch"  # of a route that the client has left
    WRONG_SENDER = "wrong_sender"  # a STEP from a peer that is not before us in the route
    WRONG_MODEL = "wrong_model"  # an OPEN for a model that is not served here
    BAD_FRAME = "bad_frame"  # breaks a limit, or cannot be what it says
    STAGE_LOST = "stage_lost"  # the shard, its worker or the next stage is gone
    OVERFLOW = "overflow"  # more rows than the session or the model's context allows
    LEAVING = "leaving"  # the node is on its way out
    INTERNAL = "internal"  # a fault of ours: the log of the node says which
    NO_ROOM = "no_room"  # between worker and node only: a client hears BUSY


TEMPORARY = frozenset({FailCode.STAGE_LOST, FailCode.UNKNOWN_SESSION, FailCode.LEAVING})
