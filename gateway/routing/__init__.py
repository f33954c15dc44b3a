"""Which version answers a request: route and key in, version, arm and reason out. Pure."""
