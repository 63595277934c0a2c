"""Tests that take minutes and need a container engine or a new environment.

Their files have no prefix `test_`, so that pytest does not collect them by default;
`make test-containers` and `make test-release` run them. Measurements are written to
benchmarks/results/.
"""
