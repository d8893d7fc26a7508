"""The board's own parts: everything here may know hivemind's DHT."""
