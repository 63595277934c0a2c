"""The inference network: a loaded detector folded, merged, cast and packed for one device.

    LiteDETR (trained, loaded) --InferenceDetector--> what `Predictor` runs for the engine

`layers` and `attention` mirror the detector's modules with prepared weights, `geometry` remembers
what follows from sizes alone, `precision` chooses the type.
"""
