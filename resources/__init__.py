"""What the pipeline runs on: GPUs, detectors, decoders, stores. Imports nothing of `ocr_assets`."""
