"""CenterPoint with the parts of sigplug."""
