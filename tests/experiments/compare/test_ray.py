"""The same comparison through a real local Ray cluster."""

from __future__ import annotations

import os

import pytest

from kasatune.errors import WorkError
from tests.experiments.compare.toys import folders, make_toy_spec, run, scores

ray = pytest.importorskip("ray", reason="needs kasatune[ray]")


@pytest.fixture(scope="module")
def cluster():
    environment = {"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "OMP_NUM_THREADS": "1"}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    yield
    ray.shutdown()


def test_ray_gives_the_scores_of_a_sequential_comparison_and_resumes(cluster, bert, tmp_path):
    spec = make_toy_spec(bert, tmp_path, seeds=(0,))
    expected, _ = run(spec, tmp_path / "sequential")
    found, lines = run(spec, tmp_path / "ray", workers="ray")
    assert len(lines) == 7 and scores(found) == scores(expected)
    assert set(folders(tmp_path / "ray")) == set(folders(tmp_path / "sequential"))
    assert run(spec, tmp_path / "ray", workers="ray")[1] == []


def test_a_run_that_is_too_large_for_the_cluster_is_refused(cluster, bert, tmp_path):
    with pytest.raises(WorkError, match="--threads"):
        run(make_toy_spec(bert, tmp_path), tmp_path / "out", workers="ray", threads=64)
