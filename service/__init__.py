"""The detection service: an asyncio edge process (HTTP, gRPC) in front of engine processes.

Only `service.engine` imports torch.
"""
