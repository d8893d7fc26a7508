"""From a checked request to an answer, whole or piece by piece, whatever the API."""
