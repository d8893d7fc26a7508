"""From what peers advertise to the route of a request: plans, scores, the cheapest chain."""
