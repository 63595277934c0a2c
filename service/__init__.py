"""The detection service: an asyncio edge (HTTP, gRPC) in front of engine processes.

Only `service.engine` imports torch; each module's first lines say where it stands on the path of a
request.
"""
