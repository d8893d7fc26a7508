"""One volunteer: advertises its devices, loads its shard, serves its stage."""
