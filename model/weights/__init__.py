"""The weights that ship with the package: `default.safetensors`, found by `resolve_model`."""
