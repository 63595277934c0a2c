"""The detection service: an asyncio edge (HTTP, gRPC) in front of engine processes.

Nothing here imports torch except `service.engine` and what only it loads; see each module's first
lines for its place on the way of a request.
"""
