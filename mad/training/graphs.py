"""Work that repeats on the GPU: done once as it is, recorded as a CUDA graph the second time, replayed from then on.

The first time compiles and tunes whatever needs it; both count as real work, so nothing has to be undone. What a graph
reads and writes beyond its own temporaries are tensors that stay where they are. A step of a small model is a few
hundred launches, which take a CPU several times longer than the GPU takes to do them; a replay is one.
"""

import contextlib
import gc
import time
from collections.abc import Callable, Hashable

import torch

from mad.memory import out_of_memory


class Immediate:
    """Does the work there and then: the plain path, on any device."""

    together = 1  # steps that are one piece of work
    seconds = 0.0  # that went into compilation and capture

    def __call__(self, key: tuple[Hashable, Hashable], work: Callable[[], None]) -> None:
        work()

    def forget(self, owner: Hashable) -> None:
        """What is recorded under keys of `owner` is needed no more."""


class Graphs(Immediate):
    """Does `work` under its `key` as above; on the current stream, which must not be the default one."""

    together = 4  # one launch for them, without gaps; eight were no faster

    def __init__(self) -> None:
        self.seconds = 0.0
        self._graphs: dict[tuple[Hashable, Hashable], torch.cuda.CUDAGraph | None] = {}
        self._pool = torch.cuda.graph_pool_handle()  # temporaries: graphs of one stream never run at the same time

    def __call__(self, key: tuple[Hashable, Hashable], work: Callable[[], None]) -> None:
        graph = self._graphs.get(key)
        if graph is not None:
            graph.replay()
            return
        began = time.perf_counter()
        if key in self._graphs:
            self._graphs[key] = graph = self._record(work)
            graph.replay()
        else:
            work()
            self._graphs[key] = None
        self.seconds += time.perf_counter() - began

    def forget(self, owner: Hashable) -> None:
        self._graphs = {key: graph for key, graph in self._graphs.items() if key[0] != owner}

    def _record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Without torch.cuda.graph's wait for the whole device, on which other runs are under way."""
        graph = torch.cuda.CUDAGraph()
        collecting = gc.isenabled()
        gc.disable()  # what it frees may be of another stream, which a capture does not allow
        try:
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # the first error says more
                    graph.capture_end()
                raise
            graph.capture_end()
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise RuntimeError(
                "a step cannot be captured as a CUDA graph, for instance because a layer waits for the device "
                f"(.item(), .cpu(), a branch on data); mode=eager trains it as it is: {error}"
            ) from error
        finally:
            if collecting:
                gc.enable()
        return graph
