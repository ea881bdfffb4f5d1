"""The ingress as a Serve application: the only one with a route. `eagleray up` and `attach` start it."""

from eagleray.serving import ingress_app

app = ingress_app.build()
