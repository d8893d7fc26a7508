"""What each API takes and gives: its routes, its requests checked, its answers written."""
