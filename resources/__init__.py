"""What the pipeline runs on: GPUs, detectors, decoders and stores. Nothing here imports `ocr_assets`."""
