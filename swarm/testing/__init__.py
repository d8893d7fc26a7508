"""In-memory twins of board and channel, and a clock that tests move by hand."""
