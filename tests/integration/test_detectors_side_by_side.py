"""PP-OCR and EasyOCR workers at once; predictors sharing a process failed at start in MinerU."""

import multiprocessing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from resources.detectors import load_detector

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

TEXTS = ("HELLO WORLD", "")
SIZES_PX = ((320, 256), (448, 256))
START_SECONDS = 120.0


def frames() -> list[NDArray[np.uint8]]:
    """Frames of two sizes, with and without text."""
    drawn = []
    for text in TEXTS:
        for size_px in SIZES_PX:
            image = Image.new("RGB", size_px, (20, 30, 60))
            font = ImageFont.load_default(36)
            middle = (size_px[0] // 2, size_px[1] // 2)
            ImageDraw.Draw(image).text(middle, text, fill="white", font=font, anchor="mm")
            drawn.append(np.asarray(image))
    return drawn


def found_by(name: str) -> list[tuple[list[Any], list[float]]]:
    detector = load_detector(name, device="cpu", thread_count=1)
    found = [detector.detect(frame[None])[0] for frame in frames()]
    return [(boxes.points.tolist(), boxes.confidence.tolist()) for boxes in found]


def work(name: str, barrier: "Barrier", sender: Any) -> None:
    # Released together, so that all load at the same moment and none is done before all have begun.
    barrier.wait(START_SECONDS)
    found = found_by(name)
    barrier.wait(START_SECONDS)
    sender.send(found)


def all_at_once(names: Sequence[str]) -> list[Any]:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(names))
    pipes = [context.Pipe(duplex=False) for _ in names]
    processes = [
        context.Process(target=work, args=(name, barrier, sender), daemon=True)
        for name, (_, sender) in zip(names, pipes, strict=True)
    ]
    for process in processes:
        process.start()
    for _, sender in pipes:
        sender.close()
    answers = [receiver.recv() for receiver, _ in pipes]
    for process in processes:
        process.join(START_SECONDS)
    assert [process.exitcode for process in processes] == [0] * len(names)
    return answers


def test_two_ppocr_and_two_easyocr_processes_at_once_score_as_one_after_the_other():
    names = ["ppocr", "craft", "ppocr", "craft"]
    one_after_the_other = {name: found_by(name) for name in ("ppocr", "craft")}
    assert all(any(points for points, _ in found) for found in one_after_the_other.values())
    assert all_at_once(names) == [one_after_the_other[name] for name in names]
