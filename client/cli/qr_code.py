"""QR codes in a terminal: black on white whatever its colours, two rows of modules in a line."""

import segno

BLACK_ON_WHITE, RESET = "\x1b[38;5;16;48;5;231m", "\x1b[0m"
HALVES = {(False, False): " ", (True, False): "▀", (False, True): "▄", (True, True): "█"}
QUIET_MODULES = 2  # around the code: half of the standard's, which readers forgive, for width


def qr_size(text: str) -> tuple[int, int]:
    """How many columns and lines the code takes."""
    code = segno.make(text, error="l", micro=False, boost_error=False)
    modules = int(code.symbol_size(border=QUIET_MODULES)[0])
    return modules, (modules + 1) // 2


def qr_code(text: str) -> str:
    """The text as a QR code of the least size, with its own white border."""
    code = segno.make(text, error="l", micro=False, boost_error=False)
    rows = [[bool(module) for module in row] for row in code.matrix_iter(border=QUIET_MODULES)]
    rows += [[False] * len(rows[0])] * (len(rows) % 2)
    pairs = zip(rows[::2], rows[1::2], strict=True)
    return "\n".join(f"{BLACK_ON_WHITE}{_line(*pair)}{RESET}" for pair in pairs)


def _line(upper: list[bool], lower: list[bool]) -> str:
    return "".join(HALVES[pair] for pair in zip(upper, lower, strict=True))
