"""Open-loop load: requests by a schedule that does not depend on responses, and their latencies.

    target (checked) -> steps: a rate, a schedule -> loop | grpc_loop -> exchanges -> report

Used by `lite-detr bench --url` and by benchmarks/serving.
"""
