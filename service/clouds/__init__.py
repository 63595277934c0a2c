"""Container contracts of clouds: their environment variables, health checks and request forms.

One module per cloud, with a `Cloud` in `registry.CLOUDS`. `deployment` finds the cloud that the
service runs on and turns its variables into settings; `service.servers` adds its routes.
"""
