"""The loader for training: NVIDIA DALI decodes, crops, resizes and flips, in its own threads, ahead of time.

DALI reads nothing and draws nothing: encoded images, crop windows, sizes, offsets and flips are inputs of its pipeline.
The images are read further ahead, in threads of their own, so that no request waits in the training loop. Colours,
mixing and erasing are `pipelines.loaders.render`'s, as for every loader. Only the crop's window is decoded: damage to
an image after it was indexed that leaves its size unchanged is noticed where a window reaches it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcore.errors import Refused
from kdcore.importing import importing
from pipelines.data.images import Encoded
from pipelines.data.source import Source
from pipelines.loaders.ahead import ReadAhead
from pipelines.loaders.base import Job, Loader
from pipelines.loaders.render import Finish
from pipelines.views.plan import ViewPlan


class DaliLoader(Loader):
    """Batches from DALI.

    decode_on_gpu: decode and resize there; else on the CPU, and hand pictures over to the device. num_threads: that
    decode, and as many that read. prefetch: batches that DALI prepares ahead, and as many that are read before those.
    Pictures reach torch without a copy, through DLPack; on a GPU in the order of torch's current stream, on which DALI
    also takes the memory back.
    """

    def __init__(
        self,
        source: Source,
        plan: ViewPlan,
        finish: Finish,
        max_batch: int,
        *,
        decode_on_gpu: bool,
        num_threads: int,
        prefetch: int,
    ) -> None:
        super().__init__(source, plan, finish, max_batch)
        self._decode_on_gpu = decode_on_gpu
        self._num_threads = num_threads
        self._prefetch = prefetch
        self._pipeline: Any = None
        self._read_ahead = ReadAhead(source, num_threads, prefetch)
        self._jobs: Iterator[tuple[Job, list[Encoded]]] = iter(())
        self._pending: deque[tuple[Job, list[Encoded]]] = deque()  # given to DALI, pictures not yet taken

    def decode(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, Tensor]]:
        """Yield each job with its pictures."""
        self._finish_pending()
        self._jobs = self._read_ahead(jobs)
        while (images := self._next_pictures()) is not None:
            job, _ = self._pending.popleft()
            yield job, images

    def _next_pictures(self) -> Tensor | None:
        """Return the pictures of the oldest pending job; None at the end."""
        if self._pipeline is None:
            self._pipeline = self._build_pipeline()
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        try:
            (pictures,) = self._pipeline.run(stream)
        except StopIteration:
            self._pipeline.reset()
            return None
        except Refused:  # an image that could not be read
            self._pipeline = None
            raise
        except RuntimeError as error:
            self._pipeline = None  # an error is the end of a DALI pipeline
            if wrong := self._find_broken():
                raise wrong from error
            raise
        return torch.utils.dlpack.from_dlpack(pictures.as_tensor())

    def _finish_pending(self) -> None:
        """End the work that an abandoned `load` has left, so that the pipeline starts again."""
        self._jobs = iter(())
        try:
            while self._pipeline is not None and self._next_pictures() is not None:
                pass
        except (RuntimeError, Refused):
            pass  # of pictures that are no longer needed; the pipeline will be rebuilt
        self._pending.clear()

    def _find_broken(self) -> Refused | None:
        """Return the refusal of the pending image that DALI failed on: DALI itself often does not say which or why."""
        for job, contents in self._pending:
            for sample_id, content in zip(job.views.sample_ids.tolist(), contents, strict=True):
                try:
                    self.source.decode(sample_id, content)
                except Refused as error:
                    return error
                if reason := self._complaint(content):
                    (name,) = self.source.names(np.array([sample_id]))
                    return Refused(
                        f"{name} is read by Pillow and not by DALI ({reason}); convert it to JPEG or PNG, "
                        "or set data.loader=reference"
                    )
        return None

    def _complaint(self, content: Encoded) -> str | None:
        """Return DALI's error for one image by itself; None if it decodes it."""
        dali = _import_dali()
        pipeline = dali.Pipeline(batch_size=1, num_threads=1, device_id=_device_id(self.device), prefetch_queue_depth=1)
        with pipeline:
            encoded = dali.fn.external_source(lambda: [np.frombuffer(content, dtype=np.uint8)], batch=True)
            device = "mixed" if self._decode_on_gpu else "cpu"
            pipeline.set_outputs(dali.fn.decoders.image(encoded, device=device, adjust_orientation=False))
        try:
            pipeline.build()
            pipeline.run()
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            said = [line for line in lines if "rror" in line] or lines
            return said[-1][:160] if said else type(error).__name__
        return None

    def _inputs(self) -> tuple[Any, ...]:
        """Return the next job as the pipeline's inputs; StopIteration tells DALI of the end."""
        job, contents = next(self._jobs)
        views, policy = job.views, self.plan.policy.at(job.views.views)
        self._pending.append((job, contents))
        return (
            [np.frombuffer(content, dtype=np.uint8) for content in contents],
            np.ascontiguousarray(views.window[:, :2]),
            np.ascontiguousarray(views.window[:, 2:]),
            views.resize.astype(np.float32),
            views.offset,
            np.tile(np.array([[policy.height, policy.width]], dtype=np.int32), (len(views), 1)),
            views.flip.astype(np.int32),
        )

    def _build_pipeline(self) -> Any:
        """Return the pipeline from encoded images and the numbers of their views to pictures."""
        dali, policy = _import_dali(), self.plan.policy
        fn = dali.fn
        filters = {"bilinear": dali.types.INTERP_LINEAR, "bicubic": dali.types.INTERP_CUBIC}
        pipeline = dali.Pipeline(
            batch_size=self.max_pictures,
            num_threads=self._num_threads,
            device_id=_device_id(self.device),
            prefetch_queue_depth=self._prefetch,
        )
        with pipeline:
            inputs = fn.external_source(self._inputs, num_outputs=7, batch=True)
            encoded, start, shape, size, offset, shown, flip = inputs
            pictures = fn.decoders.image_slice(
                encoded,
                device="mixed" if self._decode_on_gpu else "cpu",
                start=start,
                shape=shape,
                axes=[0, 1],
                adjust_orientation=False,
                jpeg_fancy_upsampling=True,  # the chroma that libjpeg gives on the CPU
                affine=False,  # the ranks of one machine would pin their threads to the same cores
            )
            pictures = fn.resize(pictures, size=size, interp_type=filters[policy.interpolation], antialias=True)
            pictures = fn.slice(
                pictures,
                start=offset,
                shape=shown,
                axes=[0, 1],
                out_of_bounds_policy="pad",
                fill_values=0,
            )
            pictures = fn.flip(pictures, horizontal=flip)
            pipeline.set_outputs(pictures.gpu() if self.device.type == "cuda" else pictures)
        pipeline.build()
        return pipeline


def _import_dali() -> Any:
    """Import DALI when it is first needed: it takes a second, and the other loaders do not need it."""
    try:
        with importing("nvidia.dali"):
            import nvidia.dali.fn
            import nvidia.dali.types
    except ImportError as error:
        raise Refused(
            f"DALI cannot be imported ({error}); install nvidia-dali-cuda130, or set the loader to 'reference'"
        ) from error
    return nvidia.dali


def _device_id(device: torch.device) -> int | None:
    """Return the number of a CUDA device as DALI counts; None for the CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index
