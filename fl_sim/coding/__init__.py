"""Bits and bytes of a payload: cells, packing, groups, wire format; knows no quantizer."""
