"""The images of a batch side by side, where one alone keeps only some of the threads busy.

Not here: the threads that share an image (team.py).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def each_image(work: Callable[[int], Result], num_images: int, *, threads_each: int) -> list[Result]:
    """`work` of each image's place in the batch, in their order.

    At once are as many as there are threads for, of those that torch may use. What an image comes to does not depend on that.

    Args:
        work: spends its time in compiled code that gives up Python's lock.
        num_images: of the batch.
        threads_each: that `work` takes for itself.

    Raises:
        BaseException: the first image's that raised anything; nothing works any more then.
    """
    at_once = min(num_images, torch.get_num_threads() // threads_each)
    if at_once < 2:
        return [work(i) for i in range(num_images)]
    with ThreadPoolExecutor(at_once, thread_name_prefix="crf-image") as threads:
        return list(threads.map(work, range(num_images)))
