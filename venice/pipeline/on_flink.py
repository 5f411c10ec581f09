"""Files of statements on Flink: each is one job that is kept running."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from venice.errors import InputError, VeniceError
from venice.specs import Difference

if TYPE_CHECKING:
    from venice.pipeline.engines import Statements


class OnFlink:
    """Statements as jobs: each file one job, `<pipeline>.<file's stem>`, kept running by the keeper beside the jobmanager."""

    component = "flink"
    stream = True

    def differences(self, cluster: Any, files: Sequence["Statements"]) -> dict[tuple[str, str], tuple[Difference, ...]]:
        """Files whose job is not there, has other statements, or does not run."""
        from venice.flink import Jobs

        names: dict[str, Statements] = {}
        for file in files:
            if not re.fullmatch(r"[\w.-]+", _job(file.pipeline, file.name), re.ASCII):
                raise InputError(f"{file.file}: can't be a job's name", "letters, digits, '_', '-' and '.' only, as the pipeline's folder")
            if (other := names.setdefault(_job(file.pipeline, file.name), file)) is not file:
                raise InputError(f"{file.file}: would be the same job as {other.file}", "give one of the files another name")
        there = Jobs.of(cluster).all()
        found = {}
        for file in files:
            job = there.get(_job(file.pipeline, file.name))
            differences = []
            if job is None or job.sha256 != file.sha256:
                differences.append(Difference("text", job and job.sha256[:12], file.sha256[:12]))
            elif job.state not in ("RUNNING", "STARTING", "DECLARED"):
                differences.append(Difference("state", f"{job.state}: {job.error}" if job.error else job.state, "RUNNING"))
            if differences:
                found[file.pipeline, file.name] = tuple(differences)
        return found

    def apply(self, cluster: Any, file: "Statements") -> None:
        """Declare the job and wait until its tasks run; a changed one goes on from a savepoint."""
        from venice.flink import Jobs
        from venice.ksqldb import split

        statements = split(file.text, str(file.file))
        if not any(re.match(r"INSERT\b", s.text, re.IGNORECASE) for s in statements):
            raise InputError(
                f"{file.file}: no INSERT INTO: nothing would run", "a job writes somewhere; `venice sql -f` runs other statements"
            )
        texts = [s.text.rstrip(";\n ") for s in statements]
        try:
            Jobs.of(cluster).put(_job(file.pipeline, file.name), texts, file.sha256)
        except VeniceError as error:
            # the keeper names a failing statement by its first line
            said = error.message.removeprefix("Flink: ")
            named = (s.line for s, text in zip(statements, texts, strict=True) if said.startswith(f"{text.splitlines()[0][:80]}: "))
            line = next(named, None)
            where = f"{file.file}:{line}" if line else f"{file.file}"
            error.message = f"{where}: {said}"
            if error.exit_code == VeniceError.exit_code:
                error.remedy = error.remedy or (
                    "correct the statement" if line else "`venice logs flink-jobs flink-jobmanager` has more of it"
                )
            raise

    def made(self, cluster: Any, pipeline: str, name: str) -> Sequence[str]:
        """Its job."""
        from venice.flink import Jobs

        return [f"job {_job(pipeline, name)}"] if _job(pipeline, name) in Jobs.of(cluster).all() else []

    def forget(self, cluster: Any, pipeline: str, name: str) -> None:
        """Cancel its job: a job without a pipeline would write on for ever."""
        from venice.flink import Jobs

        jobs = Jobs.of(cluster)
        if _job(pipeline, name) in jobs.all():
            jobs.delete(_job(pipeline, name))


def _job(pipeline: str, name: str) -> str:
    return f"{pipeline}.{Path(name).stem}"
