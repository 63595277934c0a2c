# Debian's Prometheus instead of prom/prometheus, for machines without access to a container registry.
# hadolint ignore=DL3006
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm
# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends prometheus wget \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o nobody -g nogroup /prometheus
USER nobody
ENTRYPOINT ["/usr/bin/prometheus"]
