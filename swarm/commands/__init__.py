"""What all commands share: parsing, entry points, and where our packages lie."""
