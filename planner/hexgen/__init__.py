"""HexGen as its paper has it: genetic search and cost, to start from and to compare with."""
