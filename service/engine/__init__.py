"""The engine process: owns torch, the model and one device."""
