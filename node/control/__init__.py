"""Who is there, who plans, and which plan counts: all that nodes agree on over the board."""
