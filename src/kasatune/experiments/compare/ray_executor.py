"""Execute the runs of a comparison as tasks of a Ray cluster, an existing one or one started for the comparison."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kasatune.errors import MissingExtraError, WorkError
from kasatune.experiments.compare.execute_run import execute_run
from kasatune.experiments.compare.process_cache import process_cache
from kasatune.experiments.compare.run_id import PlannedRun
from kasatune.experiments.compare.run_store import unfinished_folder
from kasatune.io.atomic import replace_path
from kasatune.wording import counted

Files = dict[str, bytes]


class RayExecutor:
    """Each run is a Ray task that requests the CPUs and GPUs it needs; Ray schedules it.

    RAY_ADDRESS names an existing cluster; without it, a cluster is started on this machine and shut down afterwards.
    The files of a run are sent back through Ray, so only what a recipe names (model, data) must exist on every machine.

    Args:
        runs: folder of the finished runs, on this machine.
        threads: CPUs that a run requests and uses.
        keep_adapters: keep the weights of reported runs.
        gpus: GPUs that a run requests; None requests one if the cluster has any.
        tell: receives a description of the cluster.

    Raises:
        MissingExtraError: Ray is not installed.
        WorkError: the cluster cannot be reached, or is too small for a single run.
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
                raise WorkError(f"Ray could not be started or reached: {fault}; check RAY_ADDRESS") from fault
        resources = ray.cluster_resources()
        wanted_gpus = gpus if gpus is not None else float(resources.get("GPU", 0) >= 1)
        self.slots = int(resources.get("CPU", 0) // threads)
        if wanted_gpus:
            self.slots = min(self.slots, int(resources.get("GPU", 0) // wanted_gpus))
        if self.slots < 1:
            self.close()
            raise WorkError(
                f"the Ray cluster has {resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs, but one "
                f"run requests {threads} and {wanted_gpus:g}: lower --threads or --gpus-per-run"
            )
        cpus, gpu_count = (counted(resources.get(kind, 0), kind) for kind in ("CPU", "GPU"))
        tell(f"Ray: {cpus}, {gpu_count}, {counted(self.slots, 'run')} at once")
        environment = {"env_vars": {"TOKENIZERS_PARALLELISM": "false"}}
        self._task = ray.remote(num_cpus=threads, num_gpus=wanted_gpus, max_retries=1, runtime_env=environment)(
            _execute_in_task
        )
        self._arguments = (threads, keep_adapters)
        self._under_way: dict[Any, str] = {}

    def submit(self, run: PlannedRun) -> None:
        """See `Executor.submit`."""
        self._under_way[self._task.remote(run, *self._arguments)] = run.id

    def next(self) -> str:
        """See `Executor.next`."""
        (first,), _ = self._ray.wait(list(self._under_way), num_returns=1)
        run_id = self._under_way.pop(first)
        try:
            files = self._ray.get(first)
        except self._ray.exceptions.RayError as fault:
            raise WorkError(
                f"Ray lost a run: {fault}; finished runs are kept, repeat the same command to continue"
            ) from fault
        _write_files(files, self._runs, run_id)
        return run_id

    def close(self) -> None:
        """See `Executor.close`."""
        for reference in getattr(self, "_under_way", {}):
            self._ray.cancel(reference, force=True)
        if self._started_here:
            self._ray.shutdown()


def _execute_in_task(run: PlannedRun, threads: int, keep_adapters: bool) -> Files:
    """Execute a run on the cluster; returns the content of its files by their path in the run's folder."""
    with tempfile.TemporaryDirectory() as place:
        run_id = execute_run(run, Path(place), process_cache(), threads=threads, keep_adapters=keep_adapters)
        folder = Path(place) / run_id
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _write_files(files: Files, runs: Path, run_id: str) -> None:
    folder = unfinished_folder(runs, run_id)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    replace_path(folder, runs / run_id)
