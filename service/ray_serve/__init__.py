"""The service as an application of Ray Serve: `lite-detr ray`.

client -> Ray's proxy, one per node -> a replica: detector and engine of `service.build`

`proxy` and `grpc_proxy` run in Ray's proxies, `replica` and `grpc_methods` in the replicas. Only
`deployment`, `run` and parts of `grpc_proxy` import Ray.
"""
