"""What is wrong with a body that does not have the form of its API, as an ApiError."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from client.gateway.http.api_error import ApiError, bad_request
from swarm.formatting import printable

UNKNOWN, MISSING = "extra_forbidden", "missing"
IGNORED_PAGE = "docs/gateway.md"


def problem_of(errors: Iterable[Mapping[str, Any]], body: object) -> ApiError:
    """The error for the first fault that pydantic found, of the alternatives the deepest."""
    found = max(errors, key=lambda each: len(each["loc"]))
    kind, where = found["type"], _place(found["loc"][1:], body)
    if kind == "json_invalid":
        return bad_request(f"The body is no valid JSON: {found['ctx']['error']}.")
    if kind == UNKNOWN:
        message = f"The field {where!r} is not supported. Leave it out; see {IGNORED_PAGE}."
        return bad_request(message, where, "unsupported_parameter")
    if kind == MISSING and not where:
        return bad_request("The body is missing. Send JSON.")
    if kind == MISSING:
        return bad_request(f"The field {where!r} is missing.", where, "missing_parameter")
    message = str(found["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return bad_request(f"The field {where or 'body'!r}: {message}.", where or None)


def _place(path: Sequence[str | int], body: object) -> str:
    """Where in the body it is, such as messages[0].content; names of types are left out."""
    shown, here = "", body
    for at, key in enumerate(path):
        is_last = at == len(path) - 1
        if isinstance(here, Mapping) and (key in here or is_last):
            shown += f"{'.' if shown else ''}{printable(str(key), 60)}"
            here = here.get(key)
        elif isinstance(here, Sequence) and isinstance(key, int) and key < len(here):
            shown += f"[{key}]"
            here = here[key]
    return shown
