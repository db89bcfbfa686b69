"""One run of a job's own fields: a study of a single trial, in which nothing varies.

So all that reads, watches, resumes and promotes studies knows it.
"""

from pathlib import Path

from orchestrator.config.job import JobSpec, override_job


def one_run(job: JobSpec) -> JobSpec:
    """The job without its search."""
    alone = {"search.trials": 1, "search.max_concurrent": 1, "search.pack": 1}
    changes = {"search.space": None, **alone}
    return override_job(job, changes, f"job {job.name}")


def is_one_run(job: JobSpec) -> bool:
    """Whether nothing is searched."""
    return job.search.space is None and job.search.trials == 1


def trained_on(job: JobSpec, start: Path) -> JobSpec:
    """The job beginning with the weights of an adapter's folder, and in its shape. InputError."""
    from workers.train.start import trained_as

    adapter = trained_as(start).model_dump(mode="json")
    changes = {"start_from": str(start.resolve()), "adapter": adapter}
    return override_job(job, changes, f"job {job.name}")
