"""The registry of clouds. To add one, write a module with a `Cloud` and add it to `CLOUDS`."""

from __future__ import annotations

from service.clouds.azure import AZURE
from service.clouds.cloud_run import CLOUD_RUN
from service.clouds.contract import Cloud
from service.clouds.sagemaker import SAGEMAKER
from service.clouds.vertex import VERTEX

# PORT comes last: it is recognized only where nothing more specific is.
CLOUDS: dict[str, Cloud] = {cloud.name: cloud for cloud in (SAGEMAKER, VERTEX, AZURE, CLOUD_RUN)}
