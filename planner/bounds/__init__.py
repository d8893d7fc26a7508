"""What no plan can beat: throughput from above, latency from below."""
