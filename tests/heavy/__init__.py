"""Checks that take minutes and a container engine or an empty environment.

Their files carry no `test_` in front, so that plain pytest passes them by; `make test-containers`
and `make test-release` name them. What they measured is written to benchmarks/results/.
"""
