"""Kernels that compute what the plain forms of ``sigplug.ops`` do."""
