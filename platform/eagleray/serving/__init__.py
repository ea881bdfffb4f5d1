"""Models behind one ingress: routes, keys, the ingress itself, and what runs a model version.

The ingress reaches models through `transport.Transport` and the control plane through `admin.AdminBackend`;
both are handed in, so all but the files that say `ray` or `serve` in their names runs without Ray.
"""
