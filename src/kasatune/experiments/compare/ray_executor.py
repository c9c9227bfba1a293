"""Runs as tasks of a Ray cluster, an existing one or one started here."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kasatune.errors import MissingExtraError, WorkError
from kasatune.experiments.compare.run_id import Job
from kasatune.io.atomic import replace_path

Files = dict[str, bytes]


class RayPool:
    """Each run is a Ray task that asks for the CPUs and GPUs that it needs; Ray decides where and when it is done.

    RAY_ADDRESS names an existing cluster; without it one is started on this machine for the time of the comparison.
    The files of a run travel through Ray, so that only what a recipe names (model, data) must be on every machine.

    Args:
        runs: folder of the finished runs, on this machine.
        threads: CPUs that a run asks for and uses.
        keep_adapters: keep the weights of reported runs.
        gpus: that a run asks for; None for one where the cluster has any.
        tell: is told which cluster it is.

    Raises:
        MissingExtraError: Ray is not installed.
        WorkError: the cluster cannot be reached, or cannot do a single run.
    """

    def __init__(
        self, runs: Path, *, threads: int, keep_adapters: bool, gpus: float | None, tell: Callable[[str], None]
    ) -> None:
        try:
            import ray
        except ImportError as fault:
            raise MissingExtraError("--workers ray", "ray") from fault
        self._ray, self._runs = ray, runs
        self._started_here = not ray.is_initialized()
        if self._started_here:
            options: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
            try:
                ray.init(log_to_driver=False, configure_logging=False, **options)
            except (ConnectionError, RuntimeError, ValueError) as fault:
                raise WorkError(f"Ray cannot be started or reached: {fault}; check RAY_ADDRESS") from fault
        resources = ray.cluster_resources()
        wanted = gpus if gpus is not None else float(resources.get("GPU", 0) >= 1)
        self.slots = int(resources.get("CPU", 0) // threads)
        if wanted:
            self.slots = min(self.slots, int(resources.get("GPU", 0) // wanted))
        if self.slots < 1:
            self.close()
            raise WorkError(
                f"the Ray cluster has {resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs; a run "
                f"asks for {threads} and {wanted:g}: lower --threads or --gpus-per-run"
            )
        tell(f"Ray: {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs, {self.slots} runs at once")
        # The package may not be installed where the tasks run from, only be on this process's path.
        environment = {"env_vars": {"TOKENIZERS_PARALLELISM": "false"}}
        self._task = ray.remote(num_cpus=threads, num_gpus=wanted, max_retries=1, runtime_env=environment)(_do_there)
        self._arguments = (threads, keep_adapters)
        self._under_way: dict[Any, str] = {}

    def submit(self, job: Job) -> None:
        """See `Pool.submit`."""
        self._under_way[self._task.remote(job, *self._arguments)] = job.id

    def next(self) -> str:
        """See `Pool.next`."""
        (first,), _ = self._ray.wait(list(self._under_way), num_returns=1)
        run_id = self._under_way.pop(first)
        try:
            files = self._ray.get(first)
        except self._ray.exceptions.RayError as fault:
            raise WorkError(f"Ray lost a run: {fault}; finished runs are kept, give the same command again") from fault
        _unpack(files, self._runs, run_id)
        return run_id

    def close(self) -> None:
        """See `Pool.close`."""
        for reference in getattr(self, "_under_way", {}):
            self._ray.cancel(reference, force=True)
        if self._started_here:
            self._ray.shutdown()


def _do_there(job: Job, threads: int, keep_adapters: bool) -> Files:
    """The files of a finished run, by their path in its folder."""
    from kasatune.experiments.compare.execute_run import do
    from kasatune.experiments.compare.executors import shared_here

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / do(job, Path(place), shared_here(), threads=threads, keep_adapters=keep_adapters)
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _unpack(files: Files, runs: Path, run_id: str) -> None:
    from kasatune.experiments.compare.run_store import unfinished_folder

    folder = unfinished_folder(runs, run_id)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    replace_path(folder, runs / run_id)
