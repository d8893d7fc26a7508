"""HTTP manners, whatever the API: who may ask, how much, how errors and streams look."""
