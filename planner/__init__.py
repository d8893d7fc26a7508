"""Facts in, plan out: no network, no clock, no torch."""
