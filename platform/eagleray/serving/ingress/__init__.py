"""The ingress: one raw ASGI application in front of every model."""

from eagleray.serving.ingress.app import IngressApp

__all__ = ["IngressApp"]
