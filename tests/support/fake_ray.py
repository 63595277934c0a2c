"""`lite-detr ray` with the fake device: `python -m tests.support.fake_ray`.

Settings come from the environment, as in `fake_serve`; those of Ray from `LITE_DETR_RAY_*`.
"""

from __future__ import annotations

import os
import sys

from service.ray_serve.options import RAY_ENV_PREFIX, RayOptions
from service.ray_serve.run import run
from tests.support.fake_serve import FakeSettings, fake_backend


def main() -> int:
    """Serves until a signal ends it.

    Returns:
        The exit status of the service.
    """
    names = {f"{RAY_ENV_PREFIX}{name}".upper(): name for name in RayOptions.model_fields}
    values = {names[key]: value for key, value in os.environ.items() if key in names}
    settings = FakeSettings()
    return run(settings, RayOptions.model_validate(values), fake_backend(settings))


if __name__ == "__main__":
    sys.exit(main())
