"""The payload's format, and what every quantizer needs for it: packing, groups, cells."""
