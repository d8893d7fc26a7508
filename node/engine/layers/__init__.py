"""Layers of many architectures as one fused form, matched by what their modules do."""
