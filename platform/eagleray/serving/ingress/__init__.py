"""The ingress: one raw ASGI application in front of every model."""

from eagleray.serving.ingress.app import IngressApp
from eagleray.serving.ingress.headers import StripControlHeaders

__all__ = ["IngressApp", "StripControlHeaders"]
